"""Matching of attention maps against the formulas, in float64."""

import math

import pytest
import torch
from torch import nn

from kdcli.losses.base import Dims, Features, Inner, ModelShape
from kdcli.losses.build import build_objective
from kdcli.losses.feature_matching import AttentionMaps

REACH = [1, 3, 4, 2]


def scores(heads, seed, keys=6):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(REACH), heads, keys, generator=generator, dtype=torch.float64)


def rows(raw):
    seen = torch.arange(raw.shape[-1]) < torch.tensor(REACH)[:, None, None]
    return torch.softmax(raw.masked_fill(~seen, -torch.inf), -1)


def value(kind, ours, theirs):
    dims = Dims(ModelShape(1, 8, ours.shape[1]), ModelShape(1, 8, theirs.shape[1]))
    seen = Features(Inner({}, {1: ours}), Inner({}, {1: theirs}), torch.tensor(REACH), dims, nn.ModuleDict())
    loss = build_objective(f"attention:kind={kind}")
    assert isinstance(loss, AttentionMaps)
    return loss.between((1, 1), seen)


def one_row(kind, a, b):
    if kind == "kl":
        return sum(q * math.log(q / p) for p, q in zip(a, b, strict=True))
    if kind == "scores":
        a, b = ([math.log(x) - sum(map(math.log, row)) / len(row) for x in row] for row in (a, b))
    return sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) / len(a)


@pytest.mark.parametrize("kind", ["kl", "mse", "scores"])
def test_values_are_those_of_the_definition_head_by_head(kind):
    ours, theirs = rows(scores(3, 0)), rows(scores(3, 1))
    reference = [
        sum(one_row(kind, ours[t, h, :n].tolist(), theirs[t, h, :n].tolist()) for h in range(3)) / 3
        for t, n in enumerate(REACH)
    ]
    torch.testing.assert_close(value(kind, ours, theirs).tolist(), reference, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("kind", ["kl", "mse"])
def test_rows_are_averaged_over_heads_where_their_numbers_differ(kind):
    ours, theirs = rows(scores(2, 0)), rows(scores(3, 1))
    reference = [
        one_row(kind, ours[t, :, :n].mean(0).tolist(), theirs[t, :, :n].mean(0).tolist()) for t, n in enumerate(REACH)
    ]
    torch.testing.assert_close(value(kind, ours, theirs).tolist(), reference, rtol=1e-11, atol=1e-14)


def test_scores_are_the_models_own_less_their_mean():
    raw, other = scores(2, 0), scores(2, 1)
    found = value("scores", rows(raw), rows(other))
    for t, n in enumerate(REACH):
        one, two = (part[t, :, :n] - part[t, :, :n].mean(-1, keepdim=True) for part in (raw, other))
        assert math.isclose(found[t].item(), (one - two).square().mean().item(), rel_tol=1e-10, abs_tol=1e-14)


def test_the_gradient_of_kl_over_scores_is_the_difference_of_the_rows():
    raw, theirs = scores(2, 0).requires_grad_(), rows(scores(2, 1))
    ours = rows(raw)
    (grad,) = torch.autograd.grad(value("kl", ours, theirs).sum(), raw)
    torch.testing.assert_close(grad, (ours - theirs).detach() / 2, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("kind", ["kl", "mse", "scores"])
def test_tokens_that_may_not_be_seen_count_for_nothing(kind):
    ours, theirs = rows(scores(2, 0)), rows(scores(2, 1))
    wider = (nn.functional.pad(part, (0, 4)) for part in (ours, theirs))
    torch.testing.assert_close(value(kind, *wider), value(kind, ours, theirs), rtol=1e-12, atol=0)
    assert value(kind, ours, ours).abs().max() < 1e-15


@pytest.mark.parametrize("kind", ["kl", "scores"])
def test_a_row_that_is_0_where_the_teacher_looks_is_finite(kind):
    ours, theirs = (
        torch.tensor([[row]] * 4, dtype=torch.float32) for row in ([1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0])
    )
    ours.requires_grad_()
    found = value(kind, ours, theirs)
    (grad,) = torch.autograd.grad(found.sum(), ours)
    assert torch.isfinite(found).all()
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize("kind", ["kl", "mse", "scores"])
def test_no_gradient_reaches_the_teacher(kind):
    ours, theirs = rows(scores(2, 0)).requires_grad_(), rows(scores(2, 1)).requires_grad_()
    value(kind, ours, theirs).sum().backward()
    assert ours.grad.abs().sum() > 0
    assert theirs.grad is None
