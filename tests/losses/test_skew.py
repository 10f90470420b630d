"""Skew divergences: bounds, limits, direction."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import rel_entr
from torch.testing import assert_close

from kdcli.losses.divergences.kl import ForwardKL, ReverseKL, SkewForwardKL, SkewReverseKL
from logit_pairs import by_autograd, in_closed_form, pairs

few = settings(max_examples=40, deadline=None, derandomize=True)
shares = st.floats(0.01, 0.99)
SIDES = (SkewForwardKL, SkewReverseKL)


@pytest.mark.parametrize("kind, expected", ((SkewForwardKL, 0.19017417), (SkewReverseKL, 0.22663390)))
def test_direction_by_hand(kind, expected):
    student, teacher = torch.tensor([[[0.6, 0.4]], [[0.9, 0.1]]], dtype=torch.float64).log()
    for found in (in_closed_form(kind(), student, teacher)[0], by_autograd(kind(), student, teacher)[0]):
        assert found.item() == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("kind", SIDES)
@few
@given(pair=pairs(kinds=("normal", "ties", "near"), dtype=torch.float64), alpha=shares)
def test_agrees_with_scipy(kind, pair, alpha):
    other, own = (side.softmax(-1).numpy() for side in (pair if kind is SkewForwardKL else pair[::-1]))
    expected = torch.from_numpy(rel_entr(own, alpha * own + (1 - alpha) * other).sum(-1))
    assert_close(in_closed_form(kind(alpha=alpha), *pair)[0], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", SIDES)
@few
@given(pair=pairs(filtered=True), alpha=shares)
def test_bounded_by_the_logarithm_of_the_share(kind, pair, alpha):
    assert (in_closed_form(kind(alpha=alpha), *pair)[0] <= -math.log(alpha) * (1 + 1e-5)).all()


@pytest.mark.parametrize("kind, limit", ((SkewForwardKL, ForwardKL()), (SkewReverseKL, ReverseKL())))
def test_no_skew_is_the_kl_divergence(kind, limit):
    torch.manual_seed(0)
    pair = tuple(torch.randn(2, 3, 20, dtype=torch.float64))
    for alpha, digits in ((0.0, 1e-14), (1e-6, 1e-4)):
        for index in (0, 1):
            found, expected = in_closed_form(kind(alpha=alpha), *pair), in_closed_form(limit, *pair)
            assert_close(found[index], expected[index], rtol=digits, atol=digits)


def test_full_skew_vanishes_as_the_square():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 20, dtype=torch.float64)
    q, p = student.softmax(-1), teacher.softmax(-1)
    found = by_autograd(SkewForwardKL(alpha=1 - 1e-6), student, teacher)[0]
    assert_close(found / 0.5e-12, ((q - p) ** 2 / p).sum(-1), rtol=1e-4, atol=0)
