"""Total variation: oracle, bounds, Pinsker's inequality, the kink."""

import pytest
import torch
from hypothesis import given, settings
from torch.testing import assert_close

from kdcli.losses.divergences.jsd import TotalVariation
from kdcli.losses.divergences.kl import ForwardKL
from logit_pairs import by_autograd, in_closed_form, pairs

few = settings(max_examples=60, deadline=None, derandomize=True)


def test_by_hand():
    student, teacher = torch.tensor([[0.6, 0.4]]).log(), torch.tensor([[0.9, 0.1]]).log()
    assert in_closed_form(TotalVariation(), student, teacher)[0].item() == pytest.approx(0.3, rel=1e-6)


@few
@given(pair=pairs(filtered=True))
def test_bounded_symmetric_and_under_pinskers_bound(pair):
    value = in_closed_form(TotalVariation(), *pair)[0]
    assert ((value >= 0) & (value <= 1 + 1e-6)).all()
    assert_close(value, in_closed_form(TotalVariation(), *pair[::-1])[0], rtol=1e-6, atol=1e-7)
    assert (value**2 <= in_closed_form(ForwardKL(), *pair)[0] / 2 + 1e-6).all()


@few
@given(pair=pairs(kinds=("normal", "ties"), dtype=torch.float64))
def test_agrees_with_the_definition(pair):
    q, p = (side.softmax(-1) for side in pair)
    for value, gradient in (by_autograd(TotalVariation(), *pair), in_closed_form(TotalVariation(), *pair)):
        assert_close(value, 0.5 * (p - q).abs().sum(-1), rtol=1e-13, atol=1e-15)
        side = torch.sign(q - p)
        apart = ((p - q).abs() > 1e-9).all(-1)
        expected = 0.5 * q * (side - (q * side).sum(-1, keepdim=True))
        assert_close(gradient[apart], expected[apart], rtol=1e-10, atol=1e-14)


def test_a_token_on_which_both_agree_pulls_neither_way():
    student, teacher = torch.tensor([[0.5, 0.3, 0.2]]).log(), torch.tensor([[0.5, 0.2, 0.3]]).log()
    side = torch.tensor([0.0, 1.0, -1.0])
    q = torch.tensor([0.5, 0.3, 0.2])
    expected = 0.5 * q * (side - (q * side).sum())
    for _, gradient in (
        by_autograd(TotalVariation(), student, teacher),
        in_closed_form(TotalVariation(), student, teacher),
    ):
        assert_close(gradient[0], expected, atol=1e-7, rtol=1e-5)
