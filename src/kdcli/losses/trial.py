"""Runs a loss on made-up tokens the way the engine runs it on real ones: survey, plan, chunks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kdcli.losses.base import DistillLoss, Tokens
from kdcli.losses.supplied import drawn


@dataclass(frozen=True)
class Sample:
    """The tokens of one micro-batch, whole.

    Args:
        student: logits, ``[n, v]``.
        teacher: logits, ``[n, v]``.
        labels: target ids, ``[n]``.
        facts: per-token facts of the source, ``[n]`` each, with ``seq``.
        progress: share of the run that is done, from 0 to 1.
    """

    student: Tensor
    teacher: Tensor
    labels: Tensor
    facts: dict[str, Tensor]
    progress: float = 0.5

    def rows(self, rows: Tensor) -> "Sample":
        """Return some of the tokens, in the order given, as copies."""
        facts = {name: value[rows] for name, value in self.facts.items()}
        return replace(
            self, student=self.student[rows], teacher=self.teacher[rows], labels=self.labels[rows], facts=facts
        )

    def to(self, dtype: torch.dtype) -> "Sample":
        """Return it with the logits in another dtype."""
        return replace(self, student=self.student.to(dtype), teacher=self.teacher.to(dtype))

    def map(self, change: Callable[[Tensor], Tensor]) -> "Sample":
        """Return it with both sides' logits changed."""
        return replace(self, student=change(self.student), teacher=change(self.teacher))


def sample(loss: DistillLoss, *, tokens: int = 9, entries: int = 13, scale: float = 2.0, seed: int = 0) -> Sample:
    """Draw tokens from a seed, in float32; no global generator is touched.

    Args:
        loss: whose ``needs().facts`` are drawn too.
        tokens: how many, in three sequences or fewer.
        entries: vocabulary size; the last three are never targets.
        scale: standard deviation of the logits.
        seed: of the generator.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(entries - 3, (tokens,), generator=generator)
    student, teacher = scale * torch.randn(2, tokens, entries, generator=generator)
    sequence = torch.arange(tokens) * 3 // tokens
    facts = {"seq": sequence, **drawn(loss.needs().facts, loss.needs().origins, sequence, generator)}
    return Sample(student, teacher, labels, facts)


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
    return Tokens(data.labels.clone(), student, teacher, facts, progress=data.progress)


def values(loss: DistillLoss, data: Sample, chunk: int | None = None) -> Tensor:
    """Return each token's loss, ``[n]``; the facts must be there."""
    with torch.no_grad():
        return torch.cat([loss.token_loss(tokens_of(loss, data.rows(rows))) for rows in _chunks(data, chunk)])


def values_and_grad(loss: DistillLoss, data: Sample, chunk: int | None = None) -> tuple[Tensor, Tensor]:
    """Return each token's loss, ``[n]``, and the gradient of their sum by autograd, ``[n, v]``."""
    found = [_by_autograd(loss, data.rows(rows)) for rows in _chunks(data, chunk)]
    return torch.cat([value for value, _ in found]), torch.cat([grad for _, grad in found])


def _by_autograd(loss: DistillLoss, data: Sample) -> tuple[Tensor, Tensor]:
    tok = tokens_of(loss, data, gradient=True)
    value = loss.token_loss(tok)
    (grad,) = torch.autograd.grad(value.sum(), tok.student)
    return value.detach(), grad


def _chunks(data: Sample, chunk: int | None) -> Sequence[Tensor]:
    return torch.arange(len(data.labels)).split(chunk or len(data.labels))
