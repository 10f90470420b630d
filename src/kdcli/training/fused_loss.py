"""The chunked fusion of head and loss: the only place that chunks tokens and takes logit gradients.

Full-vocabulary logits of a micro-batch never exist. Per chunk both heads are applied, the
gradient of the loss over the student's logits is taken at once, in closed form or by autograd
on a few rows, and folded into the gradients of hidden states and head; the chunk is then
overwritten by the next one. No head product is computed twice.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kdcli.losses.base import DistillLoss, Facts, Tokens
from kdcli.losses.topk import TopKWithTail
from kdcli.models.head import Head
from kdcli.models.kernels import product_back
from kdcli.models.packing import AppliedHead, Predictions, Projection, Workspace, wide


@dataclass(frozen=True)
class FusedInputs:
    """Everything about one micro-batch but the student.

    Args:
        loss: the objective.
        labels: target ids, shape ``[n]``.
        weights: factor of each token's loss in the sum, shape ``[n]``.
        sequence: each token's sequence in the micro-batch, shape ``[n]``.
        teacher: the teacher's side, or what is known of its distributions; None when the objective needs none.
        vocab: both heads are restricted to the first so many ids, unless the teacher has others.
        compute: dtype of the head products.
        workspace: chunk sizes and buffers.
        facts: per-token facts the source supplies, each ``[n]``.
        progress: share of the run that is done, 0 at its first step and 1 at its last.
        teacher_vocab: the teacher's head is restricted to the first so many ids; None for ``vocab``.
        logged: filled by the pass: what the objective logs besides its value, each ``[n]``.
        planned: filled by the pass: all facts of the micro-batch, those of survey and plan included, each ``[n]``.
    """

    loss: DistillLoss
    labels: Int[Tensor, " n"]
    weights: Float[Tensor, " n"]
    sequence: Int[Tensor, " n"]
    teacher: Predictions | TopKWithTail | None
    vocab: int
    compute: torch.dtype
    workspace: Workspace = field(default_factory=Workspace)
    facts: Facts = field(default_factory=dict)
    progress: float = 0.0
    teacher_vocab: int | None = None
    logged: dict[str, Tensor] = field(default_factory=dict)
    planned: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class FusedGradients:
    """What one pass over all chunks leaves behind.

    Args:
        parts: named loss terms of each token, ``[n]``.
        hidden: gradient of the weighted sum over the student's hidden states, ``[n, d]``.
        weight: the same over the head's weight, ``[rows, d]``.
        bias: the same over the head's bias.
    """

    parts: dict[str, Tensor]
    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


def fused_sum(student: Projection, work: FusedInputs) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the weighted sum of the tokens' losses, differentiable, and the named parts.

    Args:
        student: hidden states (with gradient) and head of the student.
        work: the rest of the micro-batch.

    Returns:
        the scalar sum, and detached parts ``[n]`` by name.
    """
    head = student.head
    if not work.labels.numel() or not work.loss.needs().logits:
        if work.labels.numel():
            with torch.no_grad(), torch.autocast(student.hidden.device.type, enabled=False):
                work.planned.update(_ChunkedPass(Projection(student.hidden.detach(), head), work).facts())
        zero = student.hidden.sum() * 0.0 + head.weight.sum() * 0.0
        return (zero if head.bias is None else zero + head.bias.sum() * 0.0), {}
    total, parts = _FusedSum.apply(student.hidden, head.weight, head.bias, head, work)
    return total, parts


class _FusedSum(torch.autograd.Function):
    """One differentiable node around the chunked pass; the gradient is ready after forward."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, head: Head, work: FusedInputs
    ) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.autocast(hidden.device.type, enabled=False):
            folded = _fold(hidden.detach(), head, work, ctx.needs_input_grad[:3])
        ctx.folded, ctx.execution = folded, work.workspace.on(hidden.device)
        total = torch.stack([part @ work.weights.to(part.dtype) for part in folded.parts.values()]).sum()
        return total, folded.parts

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        folded: FusedGradients = ctx.folded
        del ctx.folded
        factor = ctx.execution.factor(upstream)
        grads = [
            None if grad is None else _scaled(grad, factor) for grad in (folded.hidden, folded.weight, folded.bias)
        ]
        return (*grads, None, None)


def _scaled(grad: Tensor, factor: Tensor | float) -> Tensor:
    return grad if isinstance(factor, float) and factor == 1.0 else grad.mul_(factor)


def _fold(hidden: Tensor, head: Head, work: FusedInputs, wanted: tuple[bool, ...]) -> FusedGradients:
    sweep = _ChunkedPass(Projection(hidden, head), work)
    facts = sweep.facts()
    work.planned.update(facts)
    any_grad = any(wanted)
    grad_hidden = torch.empty_like(hidden) if wanted[0] else None
    grad_weight = (
        torch.zeros_like(head.weight, dtype=torch.float32 if work.compute != torch.float64 else None)
        if wanted[1]
        else None
    )
    grad_bias = torch.zeros_like(head.bias) if head.bias is not None and wanted[2] else None
    parts: dict[str, Tensor] = {}
    for span in sweep.spans():
        logits = sweep.gradient(span, facts, parts, any_grad)
        if not any_grad:
            continue
        weights = work.weights[span].unsqueeze(1)
        if grad_hidden is not None:
            grad_hidden[span] = product_back(logits, sweep.student.weight).mul_(weights)
        if grad_weight is not None:
            sweep.execution.add_outer(grad_weight[: work.vocab], logits, hidden[span] * weights)
        if grad_bias is not None:
            rows = wide(logits)
            grad_bias[: work.vocab] += work.weights[span].to(rows.dtype) @ rows
    weight = None if grad_weight is None else grad_weight.to(head.weight.dtype)
    return FusedGradients(parts, grad_hidden, weight, grad_bias)


class _ChunkedPass:
    """The passes over the chunks of one micro-batch."""

    def __init__(self, student: Projection, work: FusedInputs) -> None:
        self.work, self.head, device = work, student.head, student.hidden.device
        self.execution = work.workspace.on(device)
        self.student = AppliedHead("student", student, work.vocab, work.compute, work.workspace)
        self.coarse = None if work.teacher is None else work.teacher.bins
        self.teacher = None
        if work.teacher is not None and work.teacher.whole is not None:
            theirs = work.teacher_vocab or work.vocab
            self.teacher = work.teacher.whole.apply("teacher", theirs, work.compute, work.workspace)
        widest = max(work.vocab, work.teacher_vocab or 0)
        self.chunk = work.workspace.chunk(widest, device)
        self.block = work.workspace.block(widest, device, self.chunk)
        self.held: slice | None = None

    def spans(self) -> Iterator[slice]:
        """Chunks from the last to the first: the survey leaves the last one's teacher logits in place."""
        starts = range(0, len(self.work.labels), self.chunk)
        for start in reversed(starts):
            yield slice(start, min(start + self.chunk, len(self.work.labels)))

    def facts(self) -> dict[str, Tensor]:
        """Survey the chunks if the objective asks for it, then let it plan the micro-batch."""
        work = self.work
        facts = {**work.facts, "seq": work.sequence}
        with self.execution.formulas():
            return self._planned(facts)

    def _planned(self, facts: dict[str, Tensor]) -> dict[str, Tensor]:
        work = self.work
        if work.loss.needs().survey != "none":
            pieces = [self._survey(span) for span in reversed(list(self.spans()))]
            facts |= {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
        return {**facts, **work.loss.plan(facts)}

    def _survey(self, span: slice) -> dict[str, Tensor]:
        both = self.work.loss.needs().survey == "both"
        teacher = self._teacher_logits(span)
        student = self.student.logits(span) if both else None
        pieces = []
        for rows in self._blocks(span):
            view = slice(rows.start - span.start, rows.stop - span.start)
            seen = None if teacher is None else wide(teacher[view])
            shape = (rows.stop - rows.start, self.work.vocab)
            own = wide(student[view]) if student is not None else _absent(shape, self.work.labels.device)
            pieces.append(dict(self.work.loss.survey(self._tokens(rows, own, seen, self.work.facts))))
        return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}

    def gradient(self, span: slice, facts: Facts, parts: dict[str, Tensor], wanted: bool) -> Tensor:
        """Fill ``parts`` for one chunk and return the gradient over the head product, ``[t, vocab]``."""
        teacher, student = self._teacher_logits(span), self.student.logits(span)
        self.held, grad = None, student
        if wanted and student.dtype != self.student.weight.dtype:
            grad = self._buffer(student, self.student.weight.dtype)
        for rows in self._blocks(span):
            view = slice(rows.start - span.start, rows.stop - span.start)
            seen, own = None if teacher is None else teacher[view], student[view]
            known = None if self.coarse is None else self.coarse[rows]
            tok = self._tokens(rows, own, seen, facts, known)
            into = own if grad is student else grad[view]
            values = self.execution.gradient(self.work.loss, tok, self.head, into if wanted else None)
            for name, value in values.items():
                if name not in parts:
                    parts[name] = value.new_zeros(len(self.work.labels))
                parts[name][rows] = value
            self._log(tok, rows)
        return grad

    def _buffer(self, like: Tensor, dtype: torch.dtype) -> Tensor:
        return self.work.workspace.logits("gradient", len(like), self.work.vocab, dtype, like.device)

    def _tokens(
        self, rows: slice, student: Tensor, teacher: Tensor | None, facts: Facts, coarse: TopKWithTail | None = None
    ) -> Tokens:
        cut = {name: fact[rows] for name, fact in facts.items()}
        return Tokens(self.work.labels[rows], student, teacher, cut, coarse=coarse, progress=self.work.progress)

    def _log(self, tok: Tokens, rows: slice) -> None:
        for name, value in tok.logged.items():
            if name not in self.work.logged:
                self.work.logged[name] = value.new_zeros(len(self.work.labels))
            self.work.logged[name][rows] = value.detach()

    def _teacher_logits(self, span: slice) -> Tensor | None:
        if self.teacher is None:
            return None
        if self.held == span:
            return self.teacher.buffer(span.stop - span.start)
        self.held = span
        return self.teacher.logits(span)

    def _blocks(self, span: slice) -> Iterator[slice]:
        for start in range(span.start, span.stop, self.block):
            yield slice(start, min(start + self.block, span.stop))


def _absent(shape: tuple[int, int], device: torch.device) -> Tensor:
    """Stand in for logits the survey did not ask for: reading them gives NaN."""
    return torch.full((1, 1), float("nan"), device=device).expand(shape)
