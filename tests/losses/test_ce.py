"""Cross-entropies against torch and against forward KL."""

import pytest
import torch
from hypothesis import given, settings
from torch.nn import functional
from torch.testing import assert_close

from kdcli.losses.base import Tokens
from kdcli.losses.cross_entropy import CrossEntropy, SoftCrossEntropy
from kdcli.losses.divergences.kl import ForwardKL
from logit_pairs import by_autograd, in_closed_form, loss_of, pairs

few = settings(max_examples=60, deadline=None, derandomize=True)


def test_needs_no_teacher():
    assert not CrossEntropy().needs().teacher
    tok = Tokens(torch.tensor([1]), torch.tensor([[0.0, 0.0]]))
    assert CrossEntropy().token_loss(tok).item() == pytest.approx(0.6931472)
    parts, gradient = CrossEntropy().parts_and_grad(tok)
    assert parts["ce"].item() == pytest.approx(0.6931472)
    assert_close(gradient, torch.tensor([[0.5, -0.5]]))


@few
@given(pair=pairs(kinds=("normal", "ties", "one_hot", "zeros", "subnormal")))
def test_agrees_with_torch_and_is_never_negative(pair):
    logits = pair[0]
    labels = torch.arange(len(logits)) % logits.shape[1]
    leaf = logits.clone().requires_grad_()
    expected = functional.cross_entropy(leaf, labels, reduction="none")
    (slope,) = torch.autograd.grad(expected.sum(), leaf)
    digits = 1e-12 if logits.dtype == torch.float64 else 2e-6
    parts, gradient = CrossEntropy().parts_and_grad(Tokens(labels, logits.clone()))
    for value in (parts["ce"], CrossEntropy().token_loss(Tokens(labels, logits))):
        assert (value >= 0).all()
        assert_close(value, expected.detach(), rtol=digits, atol=digits)
    assert_close(gradient, slope, rtol=digits, atol=digits)


def test_a_filtered_label_is_infinite():
    tok = Tokens(torch.tensor([0]), torch.tensor([[-torch.inf, 0.0]]))
    assert CrossEntropy().token_loss(tok).item() == float("inf")
    assert CrossEntropy().parts_and_grad(tok)[0]["ce"].item() == float("inf")


@few
@given(pair=pairs(kinds=("normal", "ties", "near"), dtype=torch.float64))
def test_soft_is_forward_kl_and_the_teachers_entropy(pair):
    log_p = pair[1].log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    for ways in (by_autograd, in_closed_form):
        (value, gradient), (forward, slope) = ways(SoftCrossEntropy(), *pair), ways(ForwardKL(), *pair)
        assert_close(value, forward + entropy, rtol=1e-11, atol=1e-12)
        assert_close(gradient, slope, rtol=1e-10, atol=1e-12)


@few
@given(pair=pairs(filtered=True))
def test_soft_is_never_nan_nor_negative(pair):
    for value, gradient in (by_autograd(SoftCrossEntropy(), *pair), in_closed_form(SoftCrossEntropy(), *pair)):
        assert (value >= 0).all()
        assert torch.isfinite(gradient).all()


def test_soft_takes_the_temperature_and_its_square():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 7, dtype=torch.float64)
    loss = loss_of("soft_ce", 2.0)
    expected = -4 * ((teacher / 2).softmax(-1) * (student / 2).log_softmax(-1)).sum(-1)
    for value, gradient in (by_autograd(loss, student, teacher), in_closed_form(loss, student, teacher)):
        assert_close(value, expected)
        assert_close(gradient, 2 * ((student / 2).softmax(-1) - (teacher / 2).softmax(-1)))
