"""What holds on an accelerator, shown on a CPU: formulas that read nothing on the host, and are right all the same."""

from dataclasses import replace
from typing import ClassVar

import pytest
import torch

from kdcli.losses.base import DistillLoss, Needs
from kdcli.losses.build import build_objective
from kdcli.losses.divergences.akl import by_bisection, by_sorting, head_gap
from kdcli.losses.groups import AMONG, Groups
from kdcli.losses.rows import Rows, host_may_read, without_host_reads
from kdcli.losses.samples import sample, tokens_of, values_and_grad, with_facts
from kdcli.losses.sorting import first_marked, largest
from kdcli.losses.testing.contract import device_clean, value_and_grad
from kdcli.losses.token_facts import code_of
from kdcli.losses.wrappers.teacher_transforms import likeliest
from kdcli.registry.registry import LOSSES

NESTED = (
    "0.5*ce+0.5*akl",
    "akl:mu=0.3,head_rule=official,temperature=2",
    "ab:alpha=1,beta=-0.5",
    "skl:alpha=1e-5",
    "atkd:hard=akl,easy=(ce+jsd)",
    "atkd:scope=sequence,base=rkl,keep_unc=true",
    "decoupled:reverse=true,keep_unc=true,beta=2,temperature=2",
    "minillm:variant=lmops",
    "minillm:whiten=tokens,single_weight=prefix,long_weight=prefix",
    "weighted:scope=sequence,by=position,sharpness=1",
    "weighted:keep=1,power=2,loss=(truncated:top_k=3)",
    "truncated:top_k=0,top_p=0.8",
    "truncated:top_k=4,top_p=0.8,tail=uniform",
    "route:student=minillm,teacher=(weighted:loss=atkd)",
    "route:student=(0.5*ce+0.5*atkd),teacher=(revised:loss=jsd)",
    "annealed:loss=(jsd),end=1",
    "mse_logits:centred=false",
)


def on_logits():
    return [name for name in LOSSES.names() if build_objective(name).needs().logits]


@pytest.mark.parametrize("spec", [*LOSSES.names(), *NESTED])
def test_no_objective_reads_a_number_on_the_host(spec):
    device_clean(build_objective(spec))


@pytest.mark.parametrize("spec", [*on_logits(), *NESTED])
@pytest.mark.parametrize("entries", [5, 60])
def test_formulas_that_read_nothing_agree_with_float64(spec, entries):
    loss = build_objective(spec)
    data = sample(loss, entries=entries, tokens=12)
    with without_host_reads():
        parts, grad = value_and_grad(loss, tokens_of(loss, with_facts(loss, data)))
    value = torch.stack(list(parts.values())).sum(0).double()
    expected, slope = values_and_grad(loss, with_facts(loss, data.to(torch.float64)))
    assert (value - expected).norm() <= 1e-6 * expected.norm()
    assert (grad.double() - slope).norm() <= 1e-6 * slope.norm()


@pytest.mark.parametrize("spec", ["fkl", "rkl", "sym_kl", "jsd", "skl", "srkl", "akl", "ab", "dkd_div"])
@pytest.mark.parametrize("distance, absolute", [(1e-1, 3e-7), (1e-2, 0.0), (1e-3, 0.0)])
def test_small_values_keep_their_digits(spec, distance, absolute):
    """Relative to themselves; above about 1e-2, where the plain form is taken, to the size of what cancels in it."""
    size = 20.0 if spec == "ab" else 1.0  # its sums of order 1 are divided by alpha beta = 0.14
    loss = build_objective(spec)
    data = sample(loss, entries=60, tokens=12)
    data = replace(data, teacher=data.student + distance * sample(loss, entries=60, tokens=12, seed=1).student)
    with without_host_reads():
        parts, _ = value_and_grad(loss, tokens_of(loss, with_facts(loss, data)))
    (value,) = parts.values()
    expected, _ = values_and_grad(loss, with_facts(loss, data.to(torch.float64)))
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=absolute * size)


@pytest.mark.parametrize("spec", [*on_logits(), *NESTED])
def test_an_excluded_token_costs_what_it_costs_where_tokens_are_taken_again(spec):
    loss = build_objective(spec)
    data = sample(loss, entries=20, tokens=12)
    data.teacher[:6, 3] = data.student[:6, 3] = -torch.inf
    if not spec.startswith(("annealed", "revised")):
        data.teacher[6:9, 4] = -torch.inf
    data = data.to(torch.float64)
    expected, slope = value_and_grad(loss, tokens_of(loss, with_facts(loss, data)))
    with without_host_reads():
        parts, grad = value_and_grad(loss, tokens_of(loss, with_facts(loss, data)))
    assert list(parts) == list(expected)
    for name, value in parts.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-13)
    known = torch.isfinite(torch.stack(list(expected.values())).sum(0))
    torch.testing.assert_close(grad[known], slope[known], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("rule", ["paper", "official"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("entries", [1, 3, 64, 65, 301])
def test_the_head_found_without_a_sort_is_that_of_the_sort(rule, dtype, entries):
    generator = torch.Generator().manual_seed(entries)
    peaked = torch.softmax(3 * torch.randn(8, entries, generator=generator, dtype=dtype), -1)
    tied = torch.randint(0, 4, (8, entries), generator=generator).to(dtype) / 64  # sums are exact, and many are equal
    gap = torch.rand(8, entries, generator=generator, dtype=dtype)
    for p in (peaked, tied, torch.full_like(tied, 2.0**-9)):
        for mu in (torch.finfo(dtype).tiny, 0.125, 0.5, 0.96875, 0.999):
            expected = by_sorting(p, gap, mu, rule)
            torch.testing.assert_close(
                by_bisection(p, gap, mu, rule), expected, rtol=8 * torch.finfo(dtype).eps, atol=0
            )
    with without_host_reads():
        assert torch.equal(head_gap(peaked, gap, 0.5, rule), by_bisection(peaked, gap, 0.5, rule))


@pytest.mark.parametrize("width", [1, 63, 64, 130])
def test_first_marks_are_those_of_the_lowest_places(width):
    marked = torch.rand(7, width, generator=torch.Generator().manual_seed(width)) < 0.3
    for count in (0, 1, 2, 17, width):
        expected = marked & (marked.cumsum(-1) <= count)
        assert torch.equal(first_marked(marked, torch.full((7, 1), count)), expected)


@pytest.mark.parametrize("kept", [(3, 1.0), (0, 0.7), (5, 0.6), (1, 0.01), (9, 1.0)])
def test_the_likeliest_tokens_are_the_same_without_a_host_read(kept):
    logits = torch.randint(0, 4, (30, 9), generator=torch.Generator().manual_seed(0)).float()
    expected = likeliest(logits, *kept), *largest(logits, 4)
    with without_host_reads():
        found = likeliest(logits, *kept), *largest(logits, 4)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    "spec", ["atkd", "atkd:scope=sequence,k=0.3", "weighted", "weighted:scope=sequence", "minillm:variant=lmops"]
)
def test_a_plan_for_some_tokens_is_that_of_those_tokens_alone(spec):
    loss = build_objective(spec)
    data = sample(loss, tokens=21)
    facts = {**data.facts, **loss.survey(tokens_of(loss, data))}
    mask = torch.rand(21, generator=torch.Generator().manual_seed(3)) < 0.6
    alone = loss.plan({name: fact[mask] for name, fact in facts.items()})
    among = loss.plan({**facts, AMONG: mask})
    assert loss.plans_among
    for name, fact in alone.items():
        rounding = 4 * torch.finfo(torch.float32).eps if name == "advantage" else 0  # whitened by sums in another order
        torch.testing.assert_close(among[name][mask], fact, rtol=0, atol=rounding)


def test_groups_know_sizes_places_ranks_and_sums():
    groups = Groups.by(torch.tensor([5, 2, 5, 5, 2]))
    values = torch.tensor([0.5, 4.0, 3.0, 1.0, 2.0])
    assert groups.sizes.tolist() == [3, 2, 3, 3, 2]
    assert groups.places.tolist() == [0, 0, 1, 2, 1]
    assert groups.sums(values).tolist() == [4.5, 6.0, 4.5, 4.5, 6.0]
    assert groups.most(values).tolist() == [3.0, 4.0, 3.0, 3.0, 4.0]
    assert groups.ranked(values, torch.tensor([2, 2, 2, 2, 2])).tolist() == [1.0, 2.0, 1.0, 1.0, 2.0]
    assert torch.equal(groups.unsorted(groups.sorted(values)), values)


def test_rows_are_gathered_where_they_may_be_read_and_masked_elsewhere():
    mask, values = torch.tensor([True, False, True]), torch.arange(6.0).reshape(3, 2)
    read = Rows.of(mask)
    with without_host_reads():
        assert not host_may_read()
        unread = Rows.of(mask)
    assert host_may_read()
    assert read.take(values).shape == (2, 2)
    assert unread.take(values).shape == (3, 2)
    assert torch.equal(read.placed(read.take(values)), unread.placed(unread.take(values)))
    assert torch.equal(read.put(torch.ones(3, 2), read.take(values)), unread.put(torch.ones(3, 2), values))
    assert Rows.of(torch.tensor([False])).none
    assert not unread.none


class _Logarithm(DistillLoss):
    """A loss by autograd alone, of infinite gradient where the student's likeliest token has all of the mass."""

    name: ClassVar[str] = "logarithm"

    def needs(self) -> Needs:
        return Needs(teacher=False)

    def token_loss(self, tok):
        return (-torch.log1p(-torch.softmax(tok.student, -1).amax(-1))).sqrt()


@pytest.mark.parametrize("around", ["route:student=ce", "atkd:easy=ce"])
def test_tokens_of_others_bring_nothing_into_the_gradient_of_a_loss_that_autograd_takes(around):
    guest = _Logarithm()
    loss = build_objective(around)
    loss = loss.model_copy(update={"teacher" if loss.name == "route" else "hard": guest})
    data = sample(loss, entries=8, tokens=12)
    seen = with_facts(loss, data)
    fact, hers = ("split/hard", True) if loss.name == "atkd" else ("origin", code_of("teacher"))
    others = seen.facts[fact] != hers
    assert others.any()
    assert not others.all()
    seen.student[others] *= 1e4  # one token has all of the mass: the guest's slope there is infinite
    expected, slope = value_and_grad(loss, tokens_of(loss, seen))
    with without_host_reads():
        parts, grad = value_and_grad(loss, tokens_of(loss, seen))
    for name, value in parts.items():
        torch.testing.assert_close(value, expected[name])
    torch.testing.assert_close(grad, slope)
    assert torch.isfinite(grad).all()


def _reads(tok, how):
    kl = torch.softmax(tok.student, -1).log()
    return {
        "item": lambda: kl.sum(-1) * kl.max().item(),
        "tolist": lambda: kl.sum(-1) * len(kl[0].tolist()),
        "if": lambda: kl.sum(-1) if kl.max() > 0 else -kl.sum(-1),
        "nonzero": lambda: kl.sum(-1).index_fill(0, torch.nonzero(kl[:, 0] > 0).squeeze(1), 0.0),
        "mask": lambda: kl.sum(-1) + kl[kl > 0].sum(),
        "unique": lambda: kl.sum(-1) + tok.labels.unique().sum(),
        "numpy": lambda: kl.sum(-1) + float(kl.detach().numpy().max()),
        "elsewhere": lambda: kl.sum(-1) + kl.cpu().sum(-1),
    }[how]()


@pytest.mark.parametrize("how", ["item", "tolist", "if", "nonzero", "mask", "unique", "numpy", "elsewhere"])
def test_an_objective_that_reads_on_the_host_is_found_out(how):
    loss = build_objective("ce").model_copy()
    object.__setattr__(loss, "parts_and_grad", lambda tok: None)
    object.__setattr__(loss, "parts", lambda tok: {"ce": _reads(tok, how)})
    with pytest.raises(Exception, match=r"host|meta|[Mm]ask|numpy|device"):
        device_clean(loss)
