"""Operations on some of the tokens: gathered where the host may read indices, masked elsewhere.

On an accelerator, a count of tokens that the host reads makes it wait for all that was asked of the device before,
and a shape that follows from numbers cannot be compiled. There a formula that only some tokens need is
taken for all of them, and a mask chooses.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

_MAY_READ: ContextVar[bool] = ContextVar("host may read", default=True)


def host_may_read() -> bool:
    """Return whether a formula may read a tensor's numbers on the host, as it may on a CPU."""
    return _MAY_READ.get()


@contextmanager
def without_host_reads() -> Iterator[None]:
    """Take all formulas without reading a tensor's numbers on the host: every shape follows from shapes alone.

    >>> with without_host_reads():
    ...     rows = Rows.of(torch.tensor([False, True]))
    >>> rows.put(torch.zeros(2), torch.tensor([5.0, 7.0])).tolist()
    [0.0, 7.0]
    """
    before = _MAY_READ.set(False)
    try:
        yield
    finally:
        _MAY_READ.reset(before)


@dataclass(frozen=True)
class Rows:
    """Some of the tokens.

    Args:
        mask: which ones, ``[t]``.
        index: their places, ``[r]``; None where the host may not read them: then all tokens stand in for them.
    """

    mask: Tensor
    index: Tensor | None

    @classmethod
    def of(cls, mask: Tensor) -> "Rows":
        """Return the tokens that a mask ``[t]`` marks."""
        return cls(mask, torch.nonzero(mask).squeeze(1) if host_may_read() else None)

    @property
    def none(self) -> bool:
        """Whether there are known to be none."""
        return self.index is not None and not len(self.index)

    def take(self, values: Tensor) -> Tensor:
        """Return the numbers of these tokens, ``[r, ..]``; without places, those of all, ``[t, ..]``."""
        return values if self.index is None else values[self.index]

    def put(self, whole: Tensor, values: Tensor) -> Tensor:
        """Return ``whole``, ``[t, ..]``, with the numbers of these tokens replaced; ``whole`` may be overwritten.

        Args:
            whole: numbers of all tokens.
            values: numbers as :meth:`take` gives them.
        """
        if self.index is None:
            return torch.where(self._mask_for(values), values, whole)
        whole[self.index] = values
        return whole

    def placed(self, values: Tensor) -> Tensor:
        """Return numbers of these tokens at their places among all, 0 elsewhere, ``[t, ..]``; differentiable."""
        if self.index is None:
            return self.alone(values)
        return values.new_zeros((len(self.mask), *values.shape[1:])).index_put((self.index,), values)

    def alone(self, values: Tensor) -> Tensor:
        """Return numbers of all tokens, ``[t, ..]``, with 0 for the others; differentiable."""
        return torch.where(self._mask_for(values), values, values.new_zeros(()))

    def _mask_for(self, values: Tensor) -> Tensor:
        return self.mask.reshape(-1, *(1,) * (values.dim() - 1))
