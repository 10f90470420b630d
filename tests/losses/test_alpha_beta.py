"""Alpha-beta: the textbook form, the six special points, and no jump on the lines between."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from kdcli.losses.divergences.alpha_beta import AlphaBeta
from logit_pairs import all_ways, by_autograd, pairs, tokens

few = settings(max_examples=60, deadline=None, derandomize=True)
tame = pairs(kinds=("ties", "near"), dtype=torch.float64, vocab_at_most=12)


def textbook(a, b, q, p):
    if a == b == 0:
        terms = 0.5 * (p.log() - q.log()) ** 2
    elif a == 0:
        terms = (q**b * (q / p).log() * b - q**b + p**b) / b**2
    elif b == 0:
        terms = (p**a * (p / q).log() * a - p**a + q**a) / a**2
    elif a + b == 0:
        terms = ((q**a / p**a).log() + (p / q) ** a - 1) / a**2
    else:
        terms = -(p**a * q**b - (a * p ** (a + b) + b * q ** (a + b)) / (a + b)) / (a * b)
    return terms.sum(-1)


def both_values(a, b, pair):
    loss = AlphaBeta(alpha=a, beta=b)
    return [value for value, _ in all_ways(loss, *pair)]


@few
@given(
    pair=tame, a=st.sampled_from((-1.5, -0.5, 0.0, 0.2, 1.0, 2.0)), b=st.sampled_from((-1.5, -0.5, 0.0, 0.5, 0.7, 1.0))
)
def test_textbook_form_and_its_singular_branches(pair, a, b):
    q, p = (side.softmax(-1) for side in pair)
    expected = textbook(a, b, q, p)
    for found in both_values(a, b, pair):
        assert_close(found, expected, rtol=1e-8, atol=1e-11 * (1 + float(expected.max())))


@few
@given(pair=tame)
def test_special_points(pair):
    q, p = (side.softmax(-1) for side in pair)
    points = {
        (1.0, 0.0): (p * (p / q).log()).sum(-1),
        (0.0, 1.0): (q * (q / p).log()).sum(-1),
        (0.5, 0.5): 4 * (1 - (p * q).sqrt().sum(-1)),
        (1.0, 1.0): 0.5 * ((p - q) ** 2).sum(-1),
        (2.0, -1.0): 0.5 * (p**2 / q - 2 * p + q).sum(-1),
        (0.0, 0.0): 0.5 * ((p.log() - q.log()) ** 2).sum(-1),
    }
    for (a, b), expected in points.items():
        for found in both_values(a, b, pair):
            assert_close(found, expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("a, b", ((0.5, 0.0), (0.0, 0.5), (0.6, -0.6), (-0.6, 0.6), (0.0, 0.0)))
@pytest.mark.parametrize("dtype, digits", ((torch.float64, 1e-3), (torch.float32, 2e-2)))
def test_no_jump_beside_the_lines(a, b, dtype, digits):
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 4, 12).to(dtype)
    on_line = by_autograd(AlphaBeta(alpha=a, beta=b), student, teacher)
    for step in (1e-7, -1e-6, 1e-5, 1e-3 if dtype == torch.float32 else 3e-5):
        beside = by_autograd(AlphaBeta(alpha=a + step, beta=b + step / 3), student, teacher)
        for found, expected in zip(beside, on_line, strict=True):
            assert_close(found, expected, rtol=digits, atol=digits * 0.1)


@pytest.mark.parametrize("a, b", ((0.2, 0.7), (1, 0), (0, 1), (0, 0), (0.7, -0.7), (-0.5, 1.5), (1, 1), (-1, -0.5)))
def test_gradients_of_both_arguments(a, b):
    torch.manual_seed(0)
    log_q, log_p = (side.requires_grad_() for side in torch.randn(2, 3, 6, dtype=torch.float64).unbind())
    torch.autograd.gradcheck(AlphaBeta(alpha=a, beta=b).divergence, (log_q, log_p), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("a, b", ((0.2, 0.7), (1, 0), (0, 1), (0, 0), (0.7, -0.7), (-0.5, 1.5), (1, 1)))
def test_filtered_on_both_sides_or_on_one(a, b):
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 6, dtype=torch.float64)
    loss = AlphaBeta(alpha=a, beta=b)
    expected = by_autograd(loss, student[:, :5], teacher[:, :5])
    student[:, 5], teacher[:, 5] = -torch.inf, -torch.inf
    value, gradient = by_autograd(loss, student, teacher)
    assert_close(value, expected[0], rtol=1e-12, atol=1e-13)
    assert_close(gradient[:, :5], expected[1], rtol=1e-10, atol=1e-12)
    assert (gradient[:, 5] == 0).all()
    teacher[:, 5] = 0.0
    lost = loss.token_loss(tokens(student, teacher))
    assert torch.isinf(lost).all() if b <= 0 or a + b <= 0 else torch.isfinite(lost).all()
    lost = loss.token_loss(tokens(teacher, student))
    assert torch.isinf(lost).all() if a <= 0 or a + b <= 0 else torch.isfinite(lost).all()
