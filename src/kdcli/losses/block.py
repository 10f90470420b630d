"""Both softmaxes of a few tokens: what the closed forms are made of."""

from functools import cached_property

import torch
from torch import Tensor

from kdcli.losses.ops import normaliser_gap, softmax


class Block:
    """A few tokens of student and teacher, whose buffers a closed form may use up.

    What is not asked for is not computed, so that a forward KL pays for no ratio's logarithm.
    The logits are only read. A token whose logits hold minus infinity may come out as NaN.

    Args:
        student: fp32 or wider logits, ``[t, v]``.
        teacher: the same, of the teacher.
        tau: temperature of both sides.
    """

    def __init__(self, student: Tensor, teacher: Tensor, tau: float = 1.0) -> None:
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
        return softmax(self._student, self._tau)

    @cached_property
    def p(self) -> Tensor:
        """The teacher's probabilities, ``[t, v]``."""
        return softmax(self._teacher, self._tau)

    @cached_property
    def log_ratio(self) -> Tensor:
        """log(q / p), ``[t, v]``; to be asked for while p and q are still whole."""
        gap = torch.sub(self._student, self._teacher)
        if self._tau != 1.0:
            gap.mul_(1.0 / self._tau)
        return gap.sub_(normaliser_gap(self._student, self._teacher, self.q, self.p, self._tau))

    @cached_property
    def log_q(self) -> Tensor:
        """The student's log-probabilities, ``[t, v]``."""
        return self._log(self._student)

    @cached_property
    def log_p(self) -> Tensor:
        """The teacher's log-probabilities, ``[t, v]``."""
        return self._log(self._teacher)

    def _log(self, logits: Tensor) -> Tensor:
        return torch.log_softmax(logits if self._tau == 1.0 else logits / self._tau, dim=-1)


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
