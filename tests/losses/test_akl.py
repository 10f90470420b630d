"""Adaptive KL: its weight against plain Python, its identities, its detachment."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from kdcli.losses.divergences.akl import AdaptiveKL
from kdcli.losses.divergences.jsd import TotalVariation
from kdcli.losses.divergences.kl import ForwardKL, ReverseKL, SymmetricKL
from logit_pairs import by_autograd, in_closed_form, pairs

few = settings(max_examples=60, deadline=None, derandomize=True)
tame = pairs(kinds=("normal", "ties", "near"), dtype=torch.float64, vocab_at_most=20)
RULES = ("paper", "official")


def head_of(p: list[float], mu: float, rule: str) -> list[int]:
    """The head by the definition, one token after the other."""
    head: list[int] = []
    mass = 0.0
    for token in sorted(range(len(p)), key=lambda token: (-p[token], token)):
        inside = mass < mu if rule == "paper" else mass + p[token] <= mu
        if head and not inside:
            break
        head.append(token)
        mass += p[token]
    return head


def weight_of(p: list[float], q: list[float], mu: float, rule: str) -> float:
    gap = [abs(a - b) for a, b in zip(p, q, strict=True)]
    return sum(gap[token] for token in head_of(p, mu, rule)) / sum(gap) if sum(gap) else 0.5


@pytest.mark.parametrize(
    "p, paper, official",
    (((0.4, 0.3, 0.2, 0.1), [0, 1], [0]), ((0.3, 0.3, 0.2, 0.2), [0, 1], [0]), ((0.6, 0.4), [0], [0])),
)
def test_heads_of_the_published_rules(p, paper, official):
    assert head_of(list(p), 0.5, "paper") == paper
    assert head_of(list(p), 0.5, "official") == official
    q = torch.tensor([list(p)]).roll(1, -1).double()
    for rule, head in (("paper", paper), ("official", official)):
        gap = (torch.tensor(p).double() - q[0]).abs()
        found = AdaptiveKL(head_rule=rule).weight(q, torch.tensor([p]).double())
        assert_close(found[0], gap[head].sum() / gap.sum())


@pytest.mark.parametrize("rule", RULES)
@few
@given(pair=tame, mu=st.floats(0.01, 0.99))
def test_weight_and_value_against_plain_python(rule, pair, mu):
    loss = AdaptiveKL(mu=mu, head_rule=rule)
    q, p = (side.softmax(-1) for side in pair)
    rows = zip(p.tolist(), q.tolist(), strict=True)
    expected = torch.tensor([weight_of(*row, mu, rule) for row in rows], dtype=torch.float64)
    assert_close(loss.weight(q, p), expected, rtol=1e-12, atol=1e-12)
    (forward, down), (reverse, back) = (in_closed_form(side, *pair) for side in (ForwardKL(), ReverseKL()))
    w = expected[:, None]
    for value, gradient in (by_autograd(loss, *pair), in_closed_form(loss, *pair)):
        assert_close(value, expected * forward + (1 - expected) * reverse, rtol=1e-9, atol=1e-11)
        assert_close(gradient, w * down + (1 - w) * back, rtol=1e-9, atol=1e-11)
    flipped = in_closed_form(AdaptiveKL(mu=mu, head_rule=rule, flip=True), *pair)[0]
    assert_close(flipped, (1 - expected) * forward + expected * reverse, rtol=1e-9, atol=1e-11)


@few
@given(pair=tame)
def test_identities_of_the_weight(pair):
    q, p = (side.softmax(-1) for side in pair)
    w = AdaptiveKL().weight(q, p)
    top = p.argmax(-1, keepdim=True)
    sure = p.gather(-1, top).squeeze(1) > 0.5
    assert (w[sure] <= 0.5 + 1e-9).all()
    whole = 2 * in_closed_form(TotalVariation(), *pair)[0]
    plain = sure & (whole > 1e-9)
    assert_close(w[plain] * whole[plain], (p - q).abs().gather(-1, top).squeeze(1)[plain], rtol=1e-9, atol=1e-12)
    assert_close(AdaptiveKL(mu=0).weight(q, p)[plain], w[plain])


def test_one_sign_in_head_and_one_in_tail_is_half_and_half():
    p, q = torch.tensor([[[0.4, 0.3, 0.2, 0.1]], [[0.3, 0.2, 0.3, 0.2]]], dtype=torch.float64)
    assert AdaptiveKL().weight(q, p).item() == pytest.approx(0.5, abs=1e-15)
    assert_close(*(in_closed_form(loss, q.log(), p.log())[0] for loss in (AdaptiveKL(), SymmetricKL())))


@few
@given(pair=pairs(kinds=("normal", "near"), filtered=True))
def test_everything_in_the_head_is_forward_kl(pair):
    for mine, other in zip(in_closed_form(AdaptiveKL(mu=1), *pair), in_closed_form(ForwardKL(), *pair), strict=True):
        assert_close(mine, other, rtol=1e-4, atol=1e-6)


def test_equal_sides_weigh_a_half_and_cost_nothing():
    p = torch.randn(3, 50).softmax(-1)
    assert (AdaptiveKL().weight(p, p) == 0.5).all()


def test_one_hot_teacher_is_infinite_not_nan():
    teacher = torch.tensor([[0.0, -torch.inf, -torch.inf]])
    for value in (
        by_autograd(AdaptiveKL(), torch.zeros(1, 3), teacher)[0],
        in_closed_form(AdaptiveKL(), torch.zeros(1, 3), teacher)[0],
    ):
        assert value.item() == float("inf")
