"""Objectives that are one function of a token's two log-probability vectors."""

from abc import abstractmethod
from functools import cached_property
from typing import Annotated, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from kdcli.losses.base import DistillLoss, Needs, Tokens, finite_logits, log_softmax, widen
from kdcli.losses.divergences.ops import (
    EXCLUDED,
    Ratio,
    kl_of_ratio,
    log_ratio_of,
    normaliser_gap,
    slopes_of_ratio,
    softmax,
)
from kdcli.losses.rows import host_may_read
from kdcli.losses.topk import bins_of, value_and_grad
from kdcli.shapes import Logits, TeacherLogits, TokenValues

# Both softmaxes of a few tokens: what the closed forms are made of.


class Block:
    """A few tokens of student and teacher, whose buffers a closed form may use up.

    What is not asked for is not computed, so that a forward KL pays for no ratio's logarithm.
    The logits are only read. Where the host may read numbers, a token whose logits hold minus infinity may come
    out as NaN, and is taken again; elsewhere such logits are made finite first.

    Args:
        student: fp32 or wider logits, ``[t, v]``.
        teacher: the same, of the teacher.
        tau: temperature of both sides.
    """

    def __init__(self, student: Tensor, teacher: Tensor, tau: float = 1.0) -> None:
        self.total = not host_may_read()
        """Whether every token must come out right at once, because none can be picked to be taken again."""
        if self.total:
            student, teacher = finite_logits(student), finite_logits(teacher)
        self._student, self._teacher, self._tau = student, teacher, tau
        self.logged: dict[str, Tensor] = {}
        self.size: Tensor | float = 1.0
        """How large the terms are that cancel in the value, ``[t]``; a closed form says so where not about 1."""

    @property
    def watched(self) -> dict[str, Tensor]:
        """The earlier name of ``logged``, for plug-ins that write into it."""
        return self.logged

    def logits(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return copies of some tokens' logits, of student and teacher."""
        return self._student[rows], self._teacher[rows]

    def rows(self, rows: Tensor) -> "Block":
        """Return a fresh block of some of the tokens."""
        return Block(*self.logits(rows), self._tau)

    @cached_property
    def q(self) -> Tensor:
        """The student's probabilities, ``[t, v]``."""
        return self._of_student.probabilities if self.total else softmax(self._student, self._tau)

    @cached_property
    def p(self) -> Tensor:
        """The teacher's probabilities, ``[t, v]``."""
        return self._of_teacher.probabilities if self.total else softmax(self._teacher, self._tau)

    @cached_property
    def log_ratio(self) -> Tensor:
        """log(q / p), ``[t, v]``; to be asked for while p and q are still whole."""
        gap = torch.sub(self._student, self._teacher)
        if self._tau != 1.0:
            gap.mul_(1.0 / self._tau)
        if self.total:
            return gap.sub_(self._of_student.over(self._of_teacher, self._tau))
        return gap.sub_(normaliser_gap(self._student, self._teacher, self.q, self.p, self._tau))

    @cached_property
    def exact_log_ratio(self) -> Tensor:
        """log(p / q) to a relative rounding, where no token can be taken again, ``[t, v]``; while p and q are whole."""
        gap = (self._teacher - self._student).div_(self._tau)
        return log_ratio_of(self.p, self.q, gap, self._of_teacher.over(self._of_student, self._tau))

    @cached_property
    def log_q(self) -> Tensor:
        """The student's log-probabilities, ``[t, v]``."""
        return self._log(self._student)

    @cached_property
    def log_p(self) -> Tensor:
        """The teacher's log-probabilities, ``[t, v]``."""
        return self._log(self._teacher)

    def unless_excluded(self, value: Tensor, weights: Tensor, logs: Tensor) -> Tensor:
        """Return a mean of logarithms, ``[t]``, infinite where one that is weighed belongs to an excluded token.

        Where tokens can be taken again, minus infinity among the logits has made that value not finite before.

        Args:
            value: ``sum weights logs``.
            weights: a distribution, ``[t, v]``.
            logs: logarithms of its ratio to another, or of another, ``[t, v]``.
        """
        if not self.total:
            return value
        lost = ((weights > 0) & (logs.abs() * self._tau > -EXCLUDED)).any(-1)
        return torch.where(lost, value * torch.inf, value)

    def both_unless_excluded(self, forward: Tensor, reverse: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``sum p log(p / q)`` and ``sum q log(q / p)``, each infinite where it is, ``[t]``."""
        forward = self.unless_excluded(forward, self.p, self.log_ratio)
        return forward, self.unless_excluded(reverse, self.q, self.log_ratio)

    def small_kl(self, share: float = 0.0, *, reverse: bool = False) -> Tensor:
        """Return KL(p || share p + (1 - share) q) where it is small, or with p and q exchanged, ``[t]``.

        While p and q are still whole. To some digits where a tiny value can be taken again, else to nearly all.
        """
        if self.total:
            return kl_of_ratio(self.ratio(reverse=reverse), share)
        return near_kl(self.q, -self.log_ratio, share) if reverse else near_kl(self.p, self.log_ratio, share)

    def small_slopes(self, share: float, *, reverse: bool = False) -> tuple[Tensor, Tensor]:
        """Return the gradients of :meth:`small_kl` over the logits of its first side and of the other."""
        return slopes_of_ratio(self.ratio(reverse=reverse), share)

    def ratio(self, *, reverse: bool = False) -> Ratio:
        """Return p, q and log(p / q), or with p and q exchanged."""
        return Ratio(self.q, self.p, self.log_ratio) if reverse else Ratio(self.p, self.q, -self.log_ratio)

    @cached_property
    def _of_student(self) -> "_Softmax":
        return _Softmax.of(self._student, self._tau)

    @cached_property
    def _of_teacher(self) -> "_Softmax":
        return _Softmax.of(self._teacher, self._tau)

    def _log(self, logits: Tensor) -> Tensor:
        return torch.log_softmax(logits if self._tau == 1.0 else logits / self._tau, dim=-1)


class _Softmax(NamedTuple):
    """A softmax, and what its normaliser is made of: the largest logit, and the sum of the others relative to it."""

    probabilities: Tensor
    top: Tensor
    sum: Tensor

    @classmethod
    def of(cls, logits: Tensor, tau: float) -> "_Softmax":
        top = logits.amax(-1, keepdim=True)
        raised = torch.exp((logits - top) / tau)
        total = raised.sum(-1, keepdim=True)
        return cls(raised / total, top, total)

    def over(self, other: "_Softmax", tau: float) -> Tensor:
        """Return by how much this normaliser's logarithm exceeds another's, ``[t, 1]``."""
        return (self.top - other.top) / tau + torch.log(self.sum / other.sum)


def dot(left: Tensor, right: Tensor) -> Tensor:
    """Return the inner product of each row, ``[t]``."""
    return torch.linalg.vecdot(left, right)


def column(values: Tensor) -> Tensor:
    """Return one number a row as a column, ``[t, 1]``, to subtract from a row."""
    return values.unsqueeze(-1)


def near_kl(p: Tensor, log_ratio: Tensor, share: float = 0.0) -> Tensor:
    """Return KL(p || share p + (1 - share) q) where it is small, ``[t]``, given log(q / p).

    With x = m/p - 1, it is sum p (x - log(1 + x)): every term is at least 0, and rounded by x.

    >>> p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.51, 0.49]])
    >>> round(near_kl(p, (q / p).log()).item(), 8)
    0.00020004
    """
    x = torch.expm1(log_ratio).mul_(1.0 - share)
    return dot(p, torch.sub(x, log_ratio if share == 0.0 else torch.log1p(x)))


def mix(start: Tensor, end: Tensor, share: float) -> Tensor:
    """Return (1 - share) start + share end, kept above 0 so that it may divide."""
    return torch.lerp(start, end, share).clamp_min_(torch.finfo(start.dtype).tiny)


def log_near_one(ratio: Tensor) -> Tensor:
    """Replace the ratio of a distribution to a mixture holding it by its logarithm, in place.

    As log(1 + (ratio - 1)): faster than a logarithm in torch, exact near 1, and off by a relative
    rounding of 1 where the ratio is small; there the distribution that weighs it is as small.

    >>> [round(value, 4) for value in log_near_one(torch.tensor([1.0, 0.5, 0.0])).tolist()]
    [0.0, -0.6931, -16.6355]
    """
    rounding = torch.finfo(ratio.dtype).eps / 2
    return ratio.sub_(1.0).clamp_min_(rounding - 1.0).log1p_()


_TINY = 1e-6
"""Values below this are taken again in the form in which nothing cancels."""


class Divergence(DistillLoss):
    """A loss that is a function of the two log-probability vectors of a token."""

    temperature: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="softmax temperature tau of both sides")
    ] = 1.0
    zero_at_equal: ClassVar[bool] = True
    between_bins: ClassVar[bool] = True
    min_top_k: ClassVar[int] = 2
    """Fewest known tokens: with one, nothing says where among the rest the student's mass may lie."""

    total: ClassVar[bool] = False
    """Whether the closed form, and what mends it, is right for any finite logits at once, excluded tokens among them.

    Elsewhere than on a CPU no token can be picked to be taken again; without this, autograd is used there.
    """

    scale_tau2: Annotated[bool, Field(description="multiply by tau^2, so that gradients keep their size")] = True

    @abstractmethod
    def divergence(self, log_q: Logits, log_p: TeacherLogits) -> TokenValues:
        """Return the divergence of each token from student ``log_q`` and teacher ``log_p``."""

    def needs(self) -> Needs:
        """Ask for the teacher; its likeliest tokens and the mass of the rest will do at temperature 1."""
        reason = "" if self.temperature == 1.0 else "at a temperature other than 1 the rest has no known mass"
        return Needs(full_distribution=reason, min_top_k=self.min_top_k)

    def on_bins(self, log_q: Logits, log_p: Logits) -> TokenValues:
        """Return the divergence of each token between bins, of which the last stands for many tokens."""
        return self.divergence(log_q, log_p)

    def from_logits(self, student: Logits, teacher: TeacherLogits) -> TokenValues:
        """Return the divergence of each token at the temperature, from finite logits."""
        return self.divergence(log_softmax(student, self.temperature), log_softmax(teacher, self.temperature))

    def divergence_and_grad(self, block: Block) -> tuple[Tensor, Tensor] | None:
        """Return the divergence ``[t]`` and its gradient over student logits at tau = 1, ``[t, v]``.

        None (the default) means: no closed form. May use up the block's buffers. Exact unless a
        value is not finite: that token is taken again by autograd through :meth:`from_logits`.
        """
        return None

    def closed(self, block: Block) -> tuple[Tensor, Tensor] | None:
        """Return :meth:`divergence_and_grad`, improved by what can be read off the block before it is used up."""
        return self.divergence_and_grad(block)

    def refine(self, value: Tensor, grad: Tensor, block: Block) -> None:
        """Improve values of a closed form in place, if there is need, by taking some tokens again."""

    def token_loss(self, tok: Tokens) -> TokenValues:
        """Return the divergence at the temperature, times tau^2 if asked."""
        if tok.coarse is not None:
            student = finite_logits(tok.student)
            return self.on_bins(bins_of(student, tok.coarse.ids), tok.coarse.log_probs.to(student.dtype))
        assert tok.teacher is not None, "a divergence declares needs().teacher"
        value = self.from_logits(finite_logits(tok.student), finite_logits(tok.teacher.detach()))
        return value if self._scale == 1.0 else value * self._scale

    @torch.no_grad()
    def parts_and_grad(self, tok: Tokens) -> tuple[dict[str, Tensor], Tensor] | None:
        """Take value and gradient in closed form where the divergence offers one.

        On a CPU single tokens are taken again where that form has lost digits; elsewhere no token can be picked, and
        the form must be right for all of them at once.
        """
        if tok.coarse is not None:
            value, grad = value_and_grad(self.on_bins, finite_logits(tok.student), tok.coarse)
            return {self.name: value}, grad
        assert tok.teacher is not None, "a divergence declares needs().teacher"
        block = Block(widen(tok.student), widen(tok.teacher), self.temperature)
        closed = self.closed(block) if self.total or not block.total else None
        if closed is None:
            return None
        tok.logged.update(block.logged)
        value, grad = closed
        if not block.total:
            self.refine(value, grad, block)
            self.redo(value, grad, block, torch.nonzero(~torch.isfinite(value)).squeeze(1))
        if self._scale != 1.0:
            value *= self._scale
        if self._scale != self.temperature:
            grad *= self._scale / self.temperature
        return {self.name: value}, grad

    def redo(self, value: Tensor, grad: Tensor, block: Block, rows: Tensor) -> None:
        """Take some tokens' value and gradient again, by autograd."""
        if len(rows):
            student, teacher = (finite_logits(side) for side in block.logits(rows))
            with torch.enable_grad():
                again = self.from_logits(student.requires_grad_(), teacher)
                (slope,) = torch.autograd.grad(again.sum(), student)
            value[rows], grad[rows] = again.detach(), slope * self.temperature

    @property
    def _scale(self) -> float:
        return self.temperature**2 if self.scale_tau2 else 1.0


class StableDivergence(Divergence):
    """A divergence that takes logits as they are, because their difference keeps its digits."""

    small_below: ClassVar[float] = 1e-2
    """Values of the closed form below this, times the size of what cancels in them, have lost digits."""

    @abstractmethod
    def between(self, log_q: Logits, log_p: Logits, tau: float) -> TokenValues:
        """Return the divergence of each token between the softmaxes of ``log_q / tau`` and ``log_p / tau``."""

    @abstractmethod
    def small_values(self, block: Block) -> Tensor:
        """Return the divergence, ``[t]``, where it is small, to some digits; NaN where that fails."""

    def small_grad(self, block: Block) -> Tensor:
        """Return the gradient, ``[t, v]``, where the value is below :attr:`small_grad_below`, with all its digits.

        Needed of a divergence that is ``total`` and has a bound :attr:`small_grad_below`.
        """
        raise NotImplementedError(f"{self.name} is total and loses digits of its gradient")

    def divergence(self, log_q: Logits, log_p: TeacherLogits) -> TokenValues:
        """Return the divergence of each token from student ``log_q`` and teacher ``log_p``."""
        return self.between(log_q, log_p, 1.0)

    def from_logits(self, student: Logits, teacher: TeacherLogits) -> TokenValues:
        """Return the divergence of each token at the temperature, from finite logits."""
        return self.between(student, teacher, self.temperature)

    @property
    def small_grad_below(self) -> float:
        """Below this value, times the size of what cancels in it, the closed form's gradient has lost digits."""
        return 0.0

    def closed(self, block: Block) -> tuple[Tensor, Tensor] | None:
        """Return the closed form; where no token can be taken again, with small values and gradients in finer forms."""
        if not block.total:
            return self.divergence_and_grad(block)
        value, slope = self.small_values(block), self.small_grad(block) if self.small_grad_below else None
        found = self.divergence_and_grad(block)
        if found is None:
            return None
        plain, grad = found
        value = torch.where(plain < block.size * self.small_below, value, plain)
        if slope is not None:
            grad = torch.where(column(value < block.size * self.small_grad_below), slope, grad)
        return value, grad

    def refine(self, value: Tensor, grad: Tensor, block: Block) -> None:
        """Take small values again in a form in which less cancels, and tiny ones in the one where nothing does.

        So are gradients, where the value shows that they have lost digits.
        """
        size = torch.as_tensor(block.size, dtype=value.dtype).expand_as(value)
        rows = torch.nonzero(value < self.small_below * size).squeeze(1)
        if not len(rows):
            return
        value[rows] = self.small_values(block.rows(rows))
        rows = rows[~(value[rows] >= max(_TINY, self.small_grad_below) * size[rows])]
        if not len(rows):
            return
        student, teacher = block.logits(rows)
        value[rows] = self.from_logits(finite_logits(student), finite_logits(teacher))
        grad[rows[value[rows] == 0]] = 0.0
        self.redo(value, grad, block, rows[(value[rows] < self.small_grad_below * size[rows]) & (value[rows] > 0)])
