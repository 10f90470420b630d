"""Packs valid tokens, ``[b, s]`` to ``[n]``, and the buffers of their logits."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kdcli.data.batching import IGNORED, Batch
from kdcli.models.execution import Execution, execution_on
from kdcli.models.head import Head


@dataclass(frozen=True)
class Packing:
    """Where the valid tokens of a micro-batch stand.

    Args:
        positions: index of each valid token in the flattened ``[b * s]``, shape ``[n]``.
        labels: its target id, shape ``[n]``.
        sequence: its sequence in the micro-batch, shape ``[n]``.
        lengths: valid tokens of each sequence, shape ``[b]``.
    """

    positions: Int[Tensor, " n"]
    labels: Int[Tensor, " n"]
    sequence: Int[Tensor, " n"]
    lengths: Int[Tensor, " b"]

    @property
    def count(self) -> int:
        """Number of valid tokens."""
        return self.positions.numel()

    def to(self, device: torch.device) -> "Packing":
        """Return the packing on a device."""
        parts = (self.positions, self.labels, self.sequence, self.lengths)
        return Packing(*(part.to(device, non_blocking=True) for part in parts))

    def pack(self, hidden: Float[Tensor, "b s d"]) -> Float[Tensor, "n d"]:
        """Gather the hidden states of the valid tokens.

        >>> labels = torch.tensor([[-100, 7], [5, -100]])
        >>> find_valid(labels).pack(torch.arange(4.0).reshape(2, 2, 1)).flatten().tolist()
        [1.0, 2.0]
        """
        return hidden.flatten(0, 1).index_select(0, self.positions)

    def facts(self, facts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gather one number per valid token from each fact of shape ``[b, s]``."""
        return {name: fact.flatten().index_select(0, self.positions) for name, fact in facts.items()}

    def mask(self, shape: torch.Size) -> Tensor:
        """Mark the valid tokens in ``[b, s]``."""
        flat = torch.zeros(shape.numel(), dtype=torch.bool, device=self.positions.device)
        return flat.index_fill_(0, self.positions, True).reshape(shape)

    def unpack(self, values: Float[Tensor, " n"], shape: torch.Size) -> Tensor:
        """Put one number per valid token back to ``[b, s]``, 0 elsewhere."""
        flat = values.new_zeros(shape.numel()).index_copy(0, self.positions, values)
        return flat.reshape(shape)


def find_valid(labels: Int[Tensor, "b s"]) -> Packing:
    """Find the positions whose label is not -100."""
    valid = labels != IGNORED
    positions = valid.flatten().nonzero().flatten()
    return Packing(
        positions=positions,
        labels=labels.flatten()[positions],
        sequence=positions // max(labels.shape[1], 1),
        lengths=valid.sum(dim=1),
    )


def count_valid(batches: list[Batch]) -> tuple[int, int]:
    """Count valid tokens, and sequences holding at least one, over micro-batches."""
    valid = [batch.labels != IGNORED for batch in batches]
    return sum(int(mask.sum()) for mask in valid), sum(int(mask.any(dim=1).sum()) for mask in valid)


# How many tokens' logits exist at once, and the buffers they live in.


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


# A head restricted to the shared vocabulary, applied to a few tokens at a time.


class ChunkLogits(ABC):
    """Gives the logits of any span of tokens in a reused buffer."""

    @abstractmethod
    def buffer(self, rows: int) -> Tensor:
        """Return the buffer for so many tokens, with whatever it holds."""

    @abstractmethod
    def logits(self, span: slice) -> Tensor:
        """Return the logits of a span of tokens, ``[t, vocab]``, overwriting the buffer."""


class Predictions(ABC):
    """Distributions of the next token at the valid tokens, of one model or of several that are mixed.

    Where only a teacher's top k tokens are known, ``losses.topk.TopKWithTail`` stands in its place: of ``whole`` and
    ``bins`` each has the one that it is, and None for the other.
    """

    @property
    def whole(self) -> "Predictions":
        """Itself: every logit can be had."""
        return self

    @property
    def bins(self) -> None:
        """None: it is more than bins."""
        return

    @property
    def single(self) -> "Projection | None":
        """Those of one model, with hidden states of their own; None for a mixture."""
        return None

    @abstractmethod
    def apply(self, name: str, vocab: int, compute: torch.dtype, workspace: Workspace) -> ChunkLogits:
        """Return what gives the logits chunk by chunk.

        Args:
            name: of the buffers; two in use at once need two names.
            vocab: every head is restricted to the first so many ids.
            compute: dtype of the head products.
            workspace: owner of the buffers.
        """

    @abstractmethod
    def rows(self, index: Int[Tensor, " m"]) -> "Predictions":
        """Return those at some tokens, ``[m]``; hidden states are 0 where the index is below 0."""


@dataclass(frozen=True)
class Projection(Predictions):
    """One model's hidden states of the valid tokens, and the head that reads them.

    Args:
        hidden: shape ``[n, d]``.
        head: the output projection.
    """

    hidden: Float[Tensor, "n d"]
    head: Head

    @property
    def single(self) -> "Projection":
        """Itself."""
        return self

    def apply(self, name: str, vocab: int, compute: torch.dtype, workspace: Workspace) -> "AppliedHead":
        """Return the restricted head over the hidden states."""
        return AppliedHead(name, self, vocab, compute, workspace)

    def rows(self, index: Int[Tensor, " m"]) -> "Projection":
        """Return the hidden states at some tokens, 0 where there is none."""
        hidden = self.hidden.new_zeros((len(index), self.hidden.shape[1]))
        known = index >= 0
        hidden[known] = self.hidden[index[known]]
        return Projection(hidden, self.head)


class AppliedHead(ChunkLogits):
    """Gives the logits of any span of tokens in a reused buffer.

    Args:
        name: buffer name; two heads in use at once need two names.
        side: hidden states and head.
        vocab: the head is restricted to the first so many ids.
        compute: dtype of the product.
        workspace: owner of the buffers.
    """

    def __init__(self, name: str, side: Projection, vocab: int, compute: torch.dtype, workspace: Workspace) -> None:
        self.name, self.workspace, self.vocab = name, workspace, vocab
        self.hidden, self.head = side.hidden.detach(), side.head
        self.weight = side.head.weight.detach()[:vocab].to(compute)
        self.execution = workspace.on(self.hidden.device)
        self.dtype = self.execution.logits_dtype(compute)
        self.bias = None if side.head.bias is None else side.head.bias.detach()[:vocab].to(compute)

    def buffer(self, rows: int) -> Tensor:
        """Return this head's buffer for so many tokens, with arbitrary contents."""
        return self.workspace.logits(self.name, rows, self.vocab, self.dtype, self.hidden.device)

    def logits(self, span: slice) -> Tensor:
        """Return the logits of a span of tokens, ``[t, vocab]``, overwriting the buffer."""
        out = self.buffer(span.stop - span.start)
        hidden = self.hidden[span].to(self.weight.dtype)
        self.execution.product_into(out, hidden, self.weight, self.bias)
        self.head.apply_scale_and_cap_(out)
        return out


def wide(logits: Tensor) -> Tensor:
    """Return logits in at least fp32."""
    return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
