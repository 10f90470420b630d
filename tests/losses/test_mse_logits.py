"""Matching of logits: shift, holes, gradients."""

import pytest
import torch
from torch.testing import assert_close

from kdcli.losses.logit_matching import LogitsMSE
from logit_pairs import all_ways, by_autograd, in_closed_form, loss_of, tokens


@pytest.mark.parametrize("centred", (True, False))
def test_agrees_with_the_definition(centred):
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 4, 9, dtype=torch.float64)
    apart = student - teacher
    apart = apart - apart.mean(-1, keepdim=True) if centred else apart
    for value, gradient in all_ways(LogitsMSE(centred=centred), student, teacher):
        assert_close(value, apart.square().mean(-1), rtol=1e-13, atol=0)
        assert_close(gradient, 2 * apart / 9, rtol=1e-12, atol=1e-15)


def test_a_shift_counts_only_without_centring():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 4, 9, dtype=torch.float64)
    for shift in (student + 3, student):
        assert_close(*(in_closed_form(LogitsMSE(), z, teacher)[0] for z in (student, shift)), rtol=1e-12, atol=1e-14)
    raw = LogitsMSE(centred=False)
    assert (in_closed_form(raw, teacher + 3, teacher)[0] - 9).abs().max() < 1e-12
    assert in_closed_form(LogitsMSE(), teacher + 3, teacher)[0].max() < 1e-25


@pytest.mark.parametrize("centred", (True, False))
@pytest.mark.parametrize("hole", (float("-inf"), float("inf")))
def test_entries_that_are_not_finite_are_as_if_not_there(centred, hole):
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 9, dtype=torch.float64)
    loss = LogitsMSE(centred=centred)
    expected = in_closed_form(loss, student[:, 2:], teacher[:, 2:])
    student[:, 0], teacher[:, 1] = hole, hole
    for value, gradient in all_ways(loss, student, teacher):
        assert_close(value, expected[0], rtol=1e-13, atol=0)
        assert_close(gradient[:, 2:], expected[1], rtol=1e-12, atol=1e-15)
        assert (gradient[:, :2] == 0).all()


def test_nothing_finite_is_zero():
    value, gradient = by_autograd(LogitsMSE(), torch.full((1, 3), -torch.inf), torch.zeros(1, 3))
    assert value.item() == 0
    assert (gradient == 0).all()


def test_is_twice_the_high_temperature_limit_of_forward_kl():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 20, dtype=torch.float64)
    limit = loss_of("fkl", 1e5).token_loss(tokens(student, teacher))
    assert_close(LogitsMSE().token_loss(tokens(student, teacher)) / 2, limit, rtol=1e-3, atol=0)
