"""Runs a loss on synthetic tokens as the engine runs it: survey, plan, chunks."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from kdcli.losses.base import Dims, DistillLoss, Features, Inner, ModelShape, Tokens
from kdcli.losses.token_facts import random_facts

# Made-up insides of two models, for running a loss on features without any model.


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
    """Return them with the student in place of the teacher: one layer stands for every layer that is then compared."""
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


@dataclass(frozen=True)
class Sample:
    """The tokens of one micro-batch, whole.

    Args:
        student: logits, ``[n, v]``.
        teacher: logits, ``[n, v]``.
        labels: target ids, ``[n]``.
        facts: per-token facts of the source, ``[n]`` each, with ``seq``.
        progress: share of the run that is done, from 0 to 1.
        features: the inside of both models, for an objective that compares it.
    """

    student: Tensor
    teacher: Tensor
    labels: Tensor
    facts: dict[str, Tensor]
    progress: float = 0.5
    features: Features | None = None

    def rows(self, rows: Tensor) -> "Sample":
        """Return some of the tokens, in the order given, as copies."""
        facts = {name: value[rows] for name, value in self.facts.items()}
        features = None if self.features is None else self.features[rows]
        return replace(
            self,
            student=self.student[rows],
            teacher=self.teacher[rows],
            labels=self.labels[rows],
            facts=facts,
            features=features,
        )

    def to(self, dtype: torch.dtype) -> "Sample":
        """Return it with logits and features in another dtype."""
        features = None if self.features is None else of_dtype(self.features, dtype)
        return replace(self, student=self.student.to(dtype), teacher=self.teacher.to(dtype), features=features)

    def on(self, device: torch.device) -> "Sample":
        """Return it on a device."""
        features = None if self.features is None else on_device(self.features, device)
        facts = {name: fact.to(device) for name, fact in self.facts.items()}
        student, teacher, labels = (side.to(device) for side in (self.student, self.teacher, self.labels))
        return replace(self, student=student, teacher=teacher, labels=labels, facts=facts, features=features)

    def equal(self, loss: DistillLoss) -> "Sample":
        """Return it with the student in place of the teacher."""
        features = None if self.features is None else equal_features(loss, self.features)
        return replace(self, teacher=self.student, features=features)

    def mixed(self, keep: Tensor, other: "Sample") -> "Sample":
        """Return it with the tokens that are not kept, ``[n]``, taken from another sample."""
        student, teacher = (
            torch.where(keep[:, None], one, two)
            for one, two in ((self.student, other.student), (self.teacher, other.teacher))
        )
        features = None
        if self.features is not None and other.features is not None:
            features = mixed_features(keep, self.features, other.features)
        labels = torch.where(keep, self.labels, other.labels)
        return replace(self, student=student, teacher=teacher, labels=labels, features=features)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Sample":
        """Return it with both sides' logits changed."""
        return replace(self, student=change(self.student), teacher=change(self.teacher))


def sample(loss: DistillLoss, *, tokens: int = 9, entries: int = 13, scale: float = 2.0, seed: int = 0) -> Sample:
    """Draw tokens from a seed, in float32; no global generator is touched.

    Args:
        loss: whose ``needs().facts`` and features are drawn too.
        tokens: how many, in three sequences or fewer.
        entries: vocabulary size; the last three are never targets.
        scale: standard deviation of the logits.
        seed: of the generator.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(entries - 3, (tokens,), generator=generator)
    student, teacher = scale * torch.randn(2, tokens, entries, generator=generator)
    sequence = torch.arange(tokens) * 3 // tokens
    facts = {"seq": sequence, **random_facts(loss.needs().facts, loss.needs().origins, sequence, generator)}
    features = draw_features(loss, tokens, generator) if loss.needs().features else None
    return Sample(student, teacher, labels, facts, features=features)


def with_facts(loss: DistillLoss, data: Sample, chunk: int | None = None) -> Sample:
    """Survey the tokens chunk by chunk, let the loss plan over them all, and add what it found."""
    facts = dict(data.facts)
    with torch.no_grad():
        if loss.needs().survey != "none":
            found = [loss.survey(tokens_of(loss, data.rows(rows))) for rows in _chunks(data, chunk)]
            facts |= {name: torch.cat([part[name] for part in found]) for name in found[0]}
        facts |= loss.plan(dict(facts))
    return replace(data, facts=facts)


def tokens_of(loss: DistillLoss, data: Sample, *, gradient: bool = False) -> Tokens:
    """Return copies of the tokens as the loss asks to see them."""
    student = data.student.clone().requires_grad_(gradient)
    teacher = data.teacher.clone() if loss.needs().teacher else None
    facts = {name: value.clone() for name, value in data.facts.items()}
    features = data.features
    if features is not None:
        own = features.student.map(lambda value: value.clone().requires_grad_(gradient))
        features = replace(features, student=own, teacher=features.teacher.map(Tensor.clone))
    return Tokens(data.labels.clone(), student, teacher, facts, progress=data.progress, features=features)


def values(loss: DistillLoss, data: Sample, chunk: int | None = None) -> Tensor:
    """Return each token's loss, ``[n]``; the facts must be there."""
    with torch.no_grad():
        return torch.cat([loss.token_loss(tokens_of(loss, data.rows(rows))) for rows in _chunks(data, chunk)])


def values_and_grad(loss: DistillLoss, data: Sample, chunk: int | None = None) -> tuple[Tensor, Tensor]:
    """Return each token's loss, ``[n]``, and the gradient of their sum by autograd, ``[n, v]``.

    Gradients over the student's features, if there are any, stand before those over the logits.
    """
    found = [_by_autograd(loss, data.rows(rows)) for rows in _chunks(data, chunk)]
    return torch.cat([value for value, _ in found]), torch.cat([grad for _, grad in found])


def _by_autograd(loss: DistillLoss, data: Sample) -> tuple[Tensor, Tensor]:
    tok = tokens_of(loss, data, gradient=True)
    value = loss.token_loss(tok)
    inputs = [*([] if tok.features is None else tok.features.student.tensors), tok.student]
    inside = tok.features is not None
    grads = torch.autograd.grad(value.sum(), inputs, allow_unused=inside, materialize_grads=inside)
    return value.detach(), torch.cat([grad.flatten(1) for grad in grads], 1)


def _chunks(data: Sample, chunk: int | None) -> Sequence[Tensor]:
    return torch.arange(len(data.labels)).split(chunk or len(data.labels))
