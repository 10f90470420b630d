import math

import pytest
import torch

from kdcli.losses.base import Tokens
from kdcli.losses.build import build_objective
from kdcli.losses.divergences.base import Divergence
from kdcli.losses.topk import TopKWithTail, bins_of, top_k_with_tail
from kdcli.registry.registry import LOSSES

ON_BINS = sorted(
    name
    for name in LOSSES.names()
    if isinstance(loss := build_objective(name), Divergence) and not loss.needs().full_distribution
)
F_DIVERGENCES = {"fkl", "rkl", "sym_kl", "jsd", "skl", "srkl", "tvd"}


def pair(scale=3.0, rows=7, vocab=40):
    generator = torch.Generator().manual_seed(5)
    student, teacher = torch.randn(2, rows, vocab, generator=generator, dtype=torch.float64) * scale
    return torch.zeros(rows, dtype=torch.int64), student, teacher


def value(loss, labels, student, teacher):
    coarse = teacher if isinstance(teacher, TopKWithTail) else None
    return loss.token_loss(Tokens(labels, student, None if coarse else teacher, coarse=coarse))


def test_bins_are_probabilities_that_keep_a_tiny_rest():
    logits = torch.tensor([[0.0, -40.0, -41.0, -1e4]], dtype=torch.float64)
    view = top_k_with_tail(logits, 1)
    expected = math.log(math.exp(-40) + math.exp(-41))
    assert view.log_probs[0, 1].item() == pytest.approx(expected, rel=1e-12)
    assert bins_of(torch.full((1, 4), -3.0), torch.tensor([[2, 0]])).exp().tolist() == [
        pytest.approx([0.25, 0.25, 0.5], rel=1e-6)
    ]


def test_the_divergences_defined_on_bins_are_these():
    assert F_DIVERGENCES | {"ab", "akl", "soft_ce"} == set(ON_BINS)


@pytest.mark.parametrize("name", ON_BINS)
def test_closed_form_equals_autograd_through_the_whole_vocabulary(name):
    labels, student, teacher = pair()
    view, loss = top_k_with_tail(teacher, 6), build_objective(name)
    leaf = student.clone().requires_grad_()
    by_autograd = value(loss, labels, leaf, view)
    by_autograd.sum().backward()
    found, grad = loss.parts_and_grad(Tokens(labels, student.clone(), None, coarse=view))
    torch.testing.assert_close(found[name], by_autograd.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grad, leaf.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", sorted(F_DIVERGENCES))
def test_bins_never_say_more_than_the_whole_and_all_of_it_in_the_end(name):
    labels, student, teacher = pair()
    loss = build_objective(name)
    whole = value(loss, labels, student, teacher)
    before = torch.zeros_like(whole)
    for top_k in (1, 4, 16, 39):
        now = value(loss, labels, student, top_k_with_tail(teacher, top_k))
        assert (now <= whole + 1e-12).all()
        assert (now >= before - 1e-12).all()
        before = now
    torch.testing.assert_close(before, whole, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ON_BINS)
def test_equal_sides_have_no_gradient(name):
    labels, student, _ = pair()
    view = top_k_with_tail(student, 6)
    found, grad = build_objective(name).parts_and_grad(Tokens(labels, student.clone(), None, coarse=view))
    assert grad.abs().max() < 1e-12
    if name != "soft_ce":
        assert found[name].abs().max() < 1e-12


def test_the_head_of_akl_is_single_tokens_and_never_the_rest():
    labels, student, _ = pair(rows=1)
    flat = torch.zeros(1, 40, dtype=torch.float64)
    view = top_k_with_tail(flat, 4)
    p, q = view.log_probs.exp(), bins_of(student, view.ids).exp()
    gap = (p - q).abs()[0]
    share = (gap[:-1].sum() / gap.sum()).item()
    forward, reverse = (p * (p / q).log()).sum().item(), (q * (q / p).log()).sum().item()
    found = value(build_objective("akl"), labels, student, view).item()
    assert found == pytest.approx(share * forward + (1 - share) * reverse, rel=1e-9)


@pytest.mark.parametrize("spec", ["atkd", "mse_logits", "tkd", "decoupled", "fkl:temperature=2", "0.5*fkl+0.5*atkd"])
def test_what_needs_the_whole_teacher_says_why(spec):
    assert build_objective(spec).needs().full_distribution


@pytest.mark.parametrize("spec", ["fkl", "0.5*ce+0.5*akl", "ce"])
def test_a_sum_is_defined_where_its_terms_are(spec):
    assert not build_objective(spec).needs().full_distribution or not build_objective(spec).needs().teacher
