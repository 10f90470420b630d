"""Made-up insides of two models, for running a loss on features without any model."""

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from kdcli.losses.base import DistillLoss
from kdcli.losses.layers import Dims, Features, Inner, ModelShape

_KEYS = 6


def draw_features(loss: DistillLoss, tokens: int, generator: torch.Generator) -> Features:
    """Draw the layers that a loss compares, and make its learned parts; no global generator is touched.

    Args:
        loss: the objective.
        tokens: how many.
        generator: what to draw from.
    """
    dims = Dims(ModelShape(layers=2, width=5, heads=2), ModelShape(layers=4, width=7, heads=3))
    asked = loss.matches(dims)
    reach = torch.arange(tokens) % _KEYS + 1
    student, teacher = (
        Inner(
            {layer: torch.randn(tokens, shape.width, generator=generator) for layer in sorted(layers.hidden)},
            {layer: _rows(reach, shape.heads, generator) for layer in sorted(layers.attention)},
        )
        for shape, layers in ((dims.student, asked.student), (dims.teacher, asked.teacher))
    )
    return _with_modules(loss, Features(student, teacher, reach, dims, nn.ModuleDict()))


def equal_features(loss: DistillLoss, features: Features) -> Features:
    """Return them with the student for a teacher: one layer stands for every layer that is then compared."""
    dims = Dims(features.dims.student, features.dims.student)
    asked = loss.matches(dims)
    held = features.student
    one, other = (
        Inner(
            {layer: held.hidden[min(held.hidden)] for layer in side.hidden},
            {layer: held.attention[min(held.attention)] for layer in side.attention},
        )
        for side in (asked.student, asked.teacher)
    )
    return _with_modules(loss, replace(features, student=one, teacher=other, dims=dims))


def mixed_features(keep: Tensor, one: Features, other: Features) -> Features:
    """Return the features of one with the tokens that are not kept, ``[t]``, taken from the other."""
    return replace(
        one, student=_mixed(keep, one.student, other.student), teacher=_mixed(keep, one.teacher, other.teacher)
    )


def of_dtype(features: Features, dtype: torch.dtype) -> Features:
    """Return them in another dtype; learned parts are at least fp32."""
    modules = copy.deepcopy(features.modules).to(torch.promote_types(dtype, torch.float32))
    student, teacher = (side.map(lambda value: value.to(dtype)) for side in (features.student, features.teacher))
    return replace(features, student=student, teacher=teacher, modules=modules)


def on_device(features: Features, device: torch.device) -> Features:
    """Return them on a device, learned parts too."""
    student, teacher = (side.map(lambda value: value.to(device)) for side in (features.student, features.teacher))
    modules = copy.deepcopy(features.modules).to(device)
    return replace(features, student=student, teacher=teacher, reach=features.reach.to(device), modules=modules)


def _with_modules(loss: DistillLoss, features: Features) -> Features:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return replace(features, modules=loss.modules(features.dims))


def _rows(reach: Tensor, heads: int, generator: torch.Generator) -> Tensor:
    scores = torch.randn(len(reach), heads, _KEYS, generator=generator)
    seen = torch.arange(_KEYS) < reach[:, None, None]
    return torch.softmax(scores.masked_fill(~seen, -torch.inf), dim=-1)


def _mixed(keep: Tensor, one: Inner, other: Inner) -> Inner:
    rows = torch.where(keep, torch.arange(len(keep)), torch.arange(len(keep)) + len(keep))
    joined = (
        {layer: torch.cat((held[layer], new[layer]))[rows] for layer in held}
        for held, new in ((one.hidden, other.hidden), (one.attention, other.attention))
    )
    return Inner(*joined)
