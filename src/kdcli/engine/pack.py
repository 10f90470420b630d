"""Drops prompt and padding positions: from ``[b, s]`` to the ``n`` tokens that count."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kdcli.data.collate import IGNORED, Batch


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
