"""How many tokens' logits exist at once, and the buffers they live in."""

from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

_CPU_CHUNK = 5 * 2**22
_CPU_BLOCK = 2**20
_ACCELERATOR_CHUNK = 2**28


@dataclass
class Workspace:
    """Logits buffers, reused by every chunk of every step.

    Args:
        chunk_tokens: tokens whose logits exist at once; None chooses by device and vocabulary.
    """

    chunk_tokens: int | None = None
    _buffers: dict[str, Tensor] = field(default_factory=dict)

    def chunk(self, vocab: int, device: torch.device) -> int:
        """Return the tokens of one head product: 80 MiB of fp32 logits on a CPU.

        >>> Workspace().chunk(50257, torch.device("cpu"))
        416
        """
        budget = _CPU_CHUNK if device.type == "cpu" else _ACCELERATOR_CHUNK
        return self.chunk_tokens or max(budget // vocab // 32 * 32, 32)

    def block(self, vocab: int, device: torch.device, chunk: int) -> int:
        """Return the tokens of one pointwise pass: on a CPU, few enough to stay in cache."""
        return max(_CPU_BLOCK // vocab, 1) if device.type == "cpu" else chunk

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
