"""Both softmaxes of a few tokens: what the closed forms are made of."""

from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from kdcli.losses.logits import finite_logits
from kdcli.losses.ops import EXCLUDED, Ratio, kl_of_ratio, log_ratio_of, normaliser_gap, slopes_of_ratio, softmax
from kdcli.losses.rows import host_may_read


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
        self.watched: dict[str, Tensor] = {}
        self.size: Tensor | float = 1.0
        """How large the terms are that cancel in the value, ``[t]``; a closed form says so where not about 1."""

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
