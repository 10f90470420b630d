"""Symmetric cross-entropy against its definition, which clamps the one-hot label inside a logarithm."""

import pytest
import torch
from hypothesis import given, settings
from torch.testing import assert_close

from kdcli.errors import UsageError
from kdcli.losses.base import Tokens
from kdcli.losses.build import build_objective
from kdcli.losses.cross_entropy import CrossEntropy
from logit_pairs import by_autograd, in_closed_form, pairs

few = settings(max_examples=40, deadline=None, derandomize=True)


def written_out(logits, labels, alpha, beta, floor=1e-4):
    """alpha CE + beta RCE with the clamp as it stands in the definition."""
    q = logits.double().softmax(-1)
    clamped = torch.nn.functional.one_hot(labels, logits.shape[-1]).double().clamp_min(floor)
    return alpha * -q.gather(1, labels[:, None])[:, 0].log() - beta * (q * clamped.log()).sum(-1)


def test_the_reverse_is_bounded_by_the_logarithm_of_the_clamp():
    assert build_objective("sce").bound == pytest.approx(9.210340, abs=5e-7)
    lost = Tokens(torch.tensor([0]), torch.tensor([[-1000.0, 0.0]], dtype=torch.float64))
    assert build_objective("sce:alpha=0").token_loss(lost).item() == pytest.approx(9.2103403719761836, abs=1e-12)


@few
@given(pair=pairs(kinds=("normal", "ties", "near"), dtype=torch.float64))
def test_it_is_what_the_definition_says(pair):
    logits = pair[0]
    labels = torch.arange(len(logits)) % logits.shape[1]
    for alpha, beta, floor in ((0.1, 1.0, 1e-4), (0.0, 2.0, 1e-3), (1.5, 0.0, 1e-4)):
        loss = build_objective(f"sce:alpha={alpha},beta={beta},floor={floor}")
        found = loss.token_loss(Tokens(labels, logits))
        assert_close(found, written_out(logits, labels, alpha, beta, floor), rtol=1e-10, atol=1e-12)


@few
@given(pair=pairs())
def test_without_its_reverse_it_is_a_multiple_of_cross_entropy(pair):
    for ways in (by_autograd, in_closed_form):
        value, slope = ways(build_objective("sce:alpha=0.25,beta=0"), *pair)
        expected, gradient = ways(CrossEntropy(), *pair)
        assert_close(value, 0.25 * expected, rtol=1e-5, atol=1e-6)
        assert_close(slope, 0.25 * gradient, rtol=1e-5, atol=1e-6)


@few
@given(pair=pairs(kinds=("normal", "ties", "near", "one_hot"), dtype=torch.float64))
def test_the_closed_form_is_the_gradient(pair):
    for spec in ("sce", "sce:alpha=0", "sce:alpha=2,beta=0.5,floor=0.01"):
        (value, slope), (same, gradient) = (
            ways(build_objective(spec), *pair) for ways in (by_autograd, in_closed_form)
        )
        assert_close(same, value, rtol=1e-11, atol=1e-12)
        assert_close(gradient, slope, rtol=1e-9, atol=1e-11)


def test_the_reverse_pulls_with_the_probability_of_the_label():
    q = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64)
    tok = Tokens(torch.tensor([1]), q.log())
    _, slope = build_objective("sce:alpha=0").parts_and_grad(tok)
    assert_close(slope, -9.210340371976184 * 0.2 * (torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64) - q))


def test_a_label_that_cannot_be_is_infinite_only_where_cross_entropy_counts():
    tok = Tokens(torch.tensor([0]), torch.tensor([[-torch.inf, 0.0]]))
    assert build_objective("sce").token_loss(tok).item() == float("inf")
    assert build_objective("sce:alpha=0").token_loss(tok).item() == pytest.approx(9.210340, abs=1e-5)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("sce:alpha=0,beta=0", "nothing is learnt"),
        ("sce:floor=1", "floor must lie in (0, 1)"),
        ("sce:beta=-1", "beta must be >= 0"),
        ("sce:gamma=1", "sce has no option"),
    ],
)
def test_wrong_options_are_said_in_one_line(spec, said):
    with pytest.raises(UsageError) as caught:
        build_objective(spec)
    assert said in str(caught.value)
    assert caught.value.fix
