"""ULD: oracles for one and for two vocabularies, bounds, ties, and what it asks of a teacher."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch.testing import assert_close

from kdcli.losses.base import Tokens
from kdcli.losses.build import build_objective
from kdcli.losses.divergences.jsd import TotalVariation
from kdcli.losses.logit_matching import UniversalLogits
from kdcli.losses.token_facts import ALIGNED
from logit_pairs import by_autograd, in_closed_form, pairs

few = settings(max_examples=60, deadline=None, derandomize=True)


@st.composite
def two_vocabularies(draw):
    """Logits of a few tokens over a student's and a teacher's vocabulary, of different sizes."""
    tokens, own, other = draw(st.integers(1, 4)), draw(st.integers(2, 40)), draw(st.integers(2, 40))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = draw(st.sampled_from((0.5, 2.0, 6.0)))
    return tuple(torch.randn(tokens, size, generator=generator, dtype=torch.float64) * scale for size in (own, other))


def sides(pair, tau=1.0):
    return ((side / tau).softmax(-1) for side in pair)


@few
@given(pair=pairs(kinds=("normal", "ties", "near"), dtype=torch.float64), tau=st.sampled_from((0.5, 1.0, 3.0)))
def test_with_one_tokenizer_it_is_the_sorted_l1_distance(pair, tau):
    q, p = (side.sort(-1).values for side in sides(pair, tau))
    loss = UniversalLogits(temperature=tau, scale_tau2=False)
    for value, _ in (by_autograd(loss, *pair), in_closed_form(loss, *pair)):
        assert_close(value, (p - q).abs().sum(-1), rtol=1e-12, atol=1e-14)


@few
@given(pair=two_vocabularies())
def test_it_is_the_cheapest_matching_of_probabilities(pair):
    """The paper's transport of equal masses at the cost |p_i - q_j|, solved as an assignment."""
    size = max(side.shape[1] for side in pair)
    q, p = (torch.nn.functional.pad(side, (0, size - side.shape[1])) for side in sides(pair))
    value = in_closed_form(UniversalLogits(), *pair)[0]
    for token in range(len(value)):
        cost = (p[token][:, None] - q[token][None]).abs().numpy()
        rows, columns = linear_sum_assignment(cost)
        assert value[token].item() == pytest.approx(cost[rows, columns].sum(), abs=1e-12)


@few
@given(pair=two_vocabularies())
def test_closed_form_autograd_and_finite_differences_agree_over_two_vocabularies(pair):
    student, teacher = pair
    (value, gradient), (again, closed) = (way(UniversalLogits(), *pair) for way in (by_autograd, in_closed_form))
    assert_close(again, value, rtol=1e-12, atol=1e-14)
    assert_close(closed, gradient, rtol=1e-12, atol=1e-14)
    assert closed.sum(-1).abs().max() < 1e-13
    step = 1e-7 * torch.randn(student.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    up, down = (in_closed_form(UniversalLogits(), student + sign * step, teacher)[0] for sign in (1, -1))
    assert_close((up - down) / 2, (closed * step).sum(-1), rtol=1e-4, atol=1e-12)


@few
@given(pair=pairs(filtered=True))
def test_bounded_symmetric_and_at_most_twice_the_total_variation(pair):
    value = in_closed_form(UniversalLogits(), *pair)[0]
    assert ((value >= 0) & (value <= 2 + 1e-6)).all()
    assert_close(value, in_closed_form(UniversalLogits(), *pair[::-1])[0], rtol=1e-6, atol=1e-6)
    assert (value <= 2 * in_closed_form(TotalVariation(), *pair)[0] + 1e-5).all()


def test_what_a_token_is_does_not_matter():
    teacher = torch.randn(3, 9, generator=torch.Generator().manual_seed(0))
    value, _ = in_closed_form(UniversalLogits(), teacher.flip(-1), teacher)
    assert_close(value, torch.zeros(3), rtol=0, atol=1e-6)


def test_padding_with_tokens_that_cannot_come_changes_nothing():
    student, teacher = torch.randn(2, 3, 9, generator=torch.Generator().manual_seed(1)).unbind()
    wide = torch.cat((teacher, torch.full((3, 5), -torch.inf)), 1)
    for one, other in zip(
        in_closed_form(UniversalLogits(), student, wide), in_closed_form(UniversalLogits(), student, teacher),
        strict=True,
    ):  # fmt: skip
        assert_close(one, other)


def test_of_equally_likely_tokens_the_lower_id_stands_first():
    student, teacher = torch.zeros(1, 3), torch.tensor([[0.5, 0.3, 0.2]]).log()
    side, q = torch.tensor([-1.0, 1.0, 1.0]), torch.full((3,), 1 / 3)
    for value, gradient in (way(UniversalLogits(), student, teacher) for way in (by_autograd, in_closed_form)):
        assert value.item() == pytest.approx(1 / 3, abs=1e-6)
        assert_close(gradient[0], q * (side - (q * side).sum()))
        moved, _ = in_closed_form(UniversalLogits(), student - 0.1 * gradient, teacher)
        assert moved < value


def test_a_token_whose_teacher_has_not_read_the_same_text_counts_nothing():
    student, teacher = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(2)).unbind()
    known = torch.tensor([1.0, 0.0, 1.0, 0.0])
    facts = {"seq": torch.zeros(4, dtype=torch.int64), ALIGNED: known}
    tok = Tokens(torch.zeros(4, dtype=torch.int64), student.clone(), teacher.clone(), facts)
    whole, slope = in_closed_form(UniversalLogits(), student, teacher)
    assert_close(UniversalLogits().token_loss(tok), whole * known)
    assert torch.equal(tok.logged["uld.aligned"], known)
    parts, grad = UniversalLogits().parts_and_grad(tok)
    assert_close(parts["uld"], whole * known)
    assert_close(grad, slope * known[:, None])
    inside = build_objective("ce+1.5*uld")
    tok = Tokens(torch.zeros(4, dtype=torch.int64), student.clone(), teacher.clone(), facts)
    assert_close(inside.parts(tok)["uld"], 1.5 * whole * known)
    assert torch.equal(tok.logged["uld.aligned"], known)


@pytest.mark.parametrize(
    "spec, same",
    [
        ("uld", False),
        ("ce+1.5*uld", False),
        ("ramp:loss=uld", False),
        ("tempered:loss=uld", False),
        ("weighted:loss=uld,by=student_entropy", False),
        ("weighted:loss=uld,by=position", False),
        ("truncated:loss=uld,top_k=5,tail=uniform", False),
        ("0.5*fkl+0.5*uld", True),
        ("uld+hidden", True),
        ("revised:loss=uld", True),
        ("truncated:loss=uld,top_k=5", True),
        ("weighted:loss=uld,by=teacher_nll", True),
        ("weighted:loss=uld,by=disagreement", True),
        ("weighted:loss=uld,by=teacher_entropy", True),
        ("weighted:loss=ce,by=teacher_entropy", True),
        ("fkl", True),
    ],
)
def test_one_tokenizer_is_asked_for_if_anything_inside_asks(spec, same):
    assert build_objective(spec).needs().same_tokens is same
