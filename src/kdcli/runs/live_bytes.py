"""Counts the bytes of the tensors that are alive while something runs."""

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Inside its context, counts what operations allocate, and what is let go of.

    What a single operation takes and returns within itself is not seen.

    Args:
        known: tensors that are there already and do not count.

    Attributes:
        now: bytes alive.
        peak: the most there were at once.

    >>> import torch
    >>> with LiveBytes([]) as live:
    ...     kept, dropped = torch.ones(4), torch.ones(2)
    ...     del dropped
    >>> live.now, live.peak
    (16, 24)
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen = weakref.WeakSet(one.untyped_storage() for one in known)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for value in tree_leaves(found):
            if isinstance(value, Tensor):
                self._note(value)
        return found

    def _note(self, value: Tensor) -> None:
        storage = value.untyped_storage()
        if storage in self._seen:
            return
        self._seen.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, size).atexit = False

    def _drop(self, size: int) -> None:
        self.now -= size
