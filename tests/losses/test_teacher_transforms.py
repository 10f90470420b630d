"""Losses that see another teacher than there is."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdcli.errors import UsageError
from kdcli.losses.base import Tokens, finite_logits
from kdcli.losses.build import build_objective
from kdcli.losses.samples import sample, tokens_of, values, values_and_grad, with_facts
from kdcli.losses.topk import top_k_with_tail
from kdcli.losses.wrappers.teacher_transforms import Revised, Truncated, likeliest

F_DIVERGENCES = ["fkl", "rkl", "sym_kl:w=0.3", "jsd:beta=0.2", "skl", "srkl", "tvd"]


def seen(loss, data):
    return loss.changed(tokens_of(loss, data), finite_logits(data.teacher)).softmax(-1)


@given(st.integers(0, 10_000), st.floats(0.01, 0.99), st.floats(0.1, 30))
def test_the_revised_label_leads_by_one_less_eta(seed, eta, scale):
    loss = Revised(eta=eta)
    data = sample(loss, seed=seed, scale=scale).to(torch.float64)
    before, after = data.teacher.softmax(-1), seen(loss, data)
    label = data.labels[:, None]
    wrong = before.argmax(-1) != data.labels
    assert (after.argmax(-1) == data.labels).all()
    torch.testing.assert_close(after.sum(-1), torch.ones(9, dtype=torch.float64))
    lead = after.gather(1, label).squeeze(1) - after.scatter(1, label, -1.0).amax(-1)
    torch.testing.assert_close(lead[wrong], torch.full_like(lead[wrong], 1 - eta), rtol=0, atol=1e-9)
    assert torch.equal(after[~wrong], before[~wrong])
    b = eta / (before.amax(-1, keepdim=True) - before.gather(1, label) + 1)
    direct = b * before + (1 - b) * torch.nn.functional.one_hot(data.labels, before.shape[1])
    torch.testing.assert_close(after[wrong], direct[wrong], rtol=1e-9, atol=1e-12)


def test_revision_reaches_the_survey_of_the_loss_inside():
    loss = build_objective("revised:loss=atkd")
    data = sample(loss)
    facts = with_facts(loss, data).facts
    expected = 1 - seen(loss, data).gather(1, data.labels[:, None]).squeeze(1)
    torch.testing.assert_close(facts["loss/split/log_unc"].exp(), expected, rtol=1e-5, atol=1e-6)


def test_the_share_of_revised_tokens_is_watched():
    loss = build_objective("revised")
    data = sample(loss)
    tok = tokens_of(loss, data)
    loss.parts_and_grad(tok)
    assert torch.equal(tok.logged["revised.share"], (data.teacher.argmax(-1) != data.labels).float())


@pytest.mark.parametrize("tau", [0.5, 2.0])
@pytest.mark.parametrize("inner", ["fkl", "rkl", "akl", "atkd"])
def test_only_the_teacher_is_tempered(inner, tau):
    loss, bare = build_objective(f"tempered:loss={inner},temperature={tau}"), build_objective(inner)
    data = sample(loss).to(torch.float64)
    other = type(data)(data.student, data.teacher / tau, data.labels, data.facts)
    for one, two in zip(
        values_and_grad(loss, with_facts(loss, data)), values_and_grad(bare, with_facts(bare, other)), strict=True
    ):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("top_k", [1, 4, 12])
@pytest.mark.parametrize("spec", F_DIVERGENCES)
def test_the_students_tail_gives_the_divergence_of_bins(spec, top_k):
    bare = build_objective(spec)
    loss = Truncated(loss=bare, top_k=top_k)
    data = sample(loss, scale=3.0).to(torch.float64)
    answer = loss.parts_and_grad(tokens_of(loss, data))
    assert answer is not None
    closed, grad = answer
    value, slope = values_and_grad(loss, data)
    known = Tokens(
        data.labels, data.student.clone(), None, dict(data.facts), coarse=top_k_with_tail(data.teacher, top_k)
    )
    of_bins = bare.parts_and_grad(known)
    assert of_bins is not None
    binned, steep = of_bins
    for found in (closed[bare.name], value):
        torch.testing.assert_close(found, binned[bare.name], rtol=1e-9, atol=1e-12)
    for found in (grad, slope):
        torch.testing.assert_close(found, steep, rtol=1e-8, atol=1e-11)


@given(st.integers(0, 10_000), st.floats(0.05, 0.999), st.integers(0, 12))
def test_kept_tokens_are_the_fewest_that_hold_the_mass(seed, top_p, top_k):
    data = sample(build_objective("fkl"), seed=seed).to(torch.float64)
    kept = likeliest(data.teacher, top_k, top_p)
    for row, p in zip(kept, data.teacher.softmax(-1), strict=True):
        ranked = p.sort(descending=True).values
        min_top_k = int((ranked.cumsum(0) < top_p - 1e-6).sum()) + 1
        wanted = min(min_top_k, top_k or 13)
        assert int(row.sum()) == wanted
        assert p[row].min() >= p[~row].max() if wanted < 13 else True


@pytest.mark.parametrize(("tail", "mass"), [("student", True), ("uniform", True), ("none", False)])
def test_what_becomes_of_the_tail(tail, mass):
    loss = Truncated(loss=build_objective("tvd"), top_k=3, tail=tail)
    data = sample(loss).to(torch.float64)
    p, q, after = data.teacher.softmax(-1), data.student.softmax(-1), seen(loss, data)
    kept = likeliest(data.teacher, 3, 1.0)
    rest = (p * ~kept).sum(-1, keepdim=True)
    if not mass:
        expected = p * kept / (1 - rest)
    else:
        shape = q * ~kept / (q * ~kept).sum(-1, keepdim=True) if tail == "student" else (~kept).double() / 10
        expected = torch.where(kept, p, rest * shape)
    torch.testing.assert_close(after, expected, rtol=1e-9, atol=1e-12)


def test_no_completion_is_nearer_than_the_students_own_tail():
    bare = build_objective("jsd")
    data = sample(bare).to(torch.float64)
    nearest = values(Truncated(loss=bare, top_k=3), data)
    for other in (values(bare, data), values(Truncated(loss=bare, top_k=3, tail="uniform"), data)):
        assert (nearest <= other + 1e-12).all()


def test_transforms_nest_from_the_outside_in():
    loss = build_objective("revised:loss=(truncated:top_k=2),eta=0.7")
    data = sample(loss).to(torch.float64)
    first = type(data)(data.student, seen(Revised(eta=0.7), data).log(), data.labels, data.facts)
    torch.testing.assert_close(values(loss, data), values(Truncated(top_k=2), first))


@pytest.mark.parametrize("inner", ["fkl", "jsd", "tvd", "skl", "soft_ce", "srkl", "mse_logits", "atkd"])
def test_objectives_that_stand_an_exclusion_are_finite_without_a_tail(inner):
    loss = build_objective(f"truncated:loss={inner},top_k=2,tail=none")
    data = with_facts(loss, sample(loss, seed=5))
    value, grad = values_and_grad(loss, data)
    assert torch.isfinite(value).all()
    assert torch.isfinite(grad).all()
    assert (value.abs() < 1e6).all()


@pytest.mark.parametrize("inner", ["rkl", "sym_kl", "akl", "atkd:base=rkl", "tkd:reverse=true", "0.5*fkl+0.5*rkl"])
def test_objectives_that_are_infinite_without_a_tail_are_refused(inner):
    with pytest.raises(UsageError, match="infinite where the teacher allows nothing"):
        build_objective(f"truncated:loss=({inner}),top_k=2,tail=none")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("truncated:loss=rkl,tail=none", "rkl is infinite where the teacher allows nothing"),
        ("truncated:loss=akl,tail=none", "tail=student"),
        ("truncated:top_k=0", "cut nothing"),
        ("revised:loss=ce", "ce looks at no teacher"),
        ("revised:eta=1", "eta must lie in (0, 1)"),
        ("tempered:temperature=0", "temperature must be > 0"),
    ],
)
def test_what_makes_no_sense_is_refused(spec, words):
    with pytest.raises(UsageError) as caught:
        build_objective(spec)
    assert words in str(caught.value)


@pytest.mark.parametrize("spec", ["revised", "tempered", "truncated"])
def test_a_compact_cache_is_refused(spec):
    assert build_objective(spec).needs().full_distribution
