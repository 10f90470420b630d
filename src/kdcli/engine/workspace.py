"""How many tokens' logits exist at once, and the buffers they live in."""

from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from kdcli.engine.execution import Execution, execution_on


@dataclass
class Workspace:
    """Logits buffers, reused by every chunk of every step.

    Args:
        chunk_tokens: tokens whose logits exist at once; None chooses by device and vocabulary.
        execution: how the pass runs; None follows from the device.
    """

    chunk_tokens: int | None = None
    execution: Execution | None = None
    _buffers: dict[str, Tensor] = field(default_factory=dict)

    def chunk(self, vocab: int, device: torch.device) -> int:
        """Return the tokens of one head product.

        >>> Workspace().chunk(50257, torch.device("cpu"))
        416
        """
        return self.chunk_tokens or self.on(device).chunk(vocab)

    def block(self, vocab: int, device: torch.device, chunk: int) -> int:
        """Return the tokens of one pointwise pass."""
        return self.on(device).block(vocab, chunk)

    def on(self, device: torch.device) -> Execution:
        """Return how the pass runs on a device."""
        return self.execution or execution_on(device)

    def logits(self, name: str, rows: int, vocab: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return a buffer of shape ``[rows, vocab]`` with arbitrary contents."""
        keep_freed_memory()
        size = rows * vocab
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size or buffer.dtype != dtype or buffer.device != device:
            buffer = self._buffers[name] = torch.empty(size, dtype=dtype, device=device)
        return buffer[:size].view(rows, vocab)


@cache
def keep_freed_memory() -> None:
    """Let glibc keep the pointwise passes' temporaries instead of returning their pages after each.

    Freeing one block just under its bound of 32 MiB raises the sizes from which malloc maps and
    trims; without it the page faults of every block cost more than its arithmetic.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)
