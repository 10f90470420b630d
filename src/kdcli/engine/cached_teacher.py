"""A teacher that was run before: what it said comes from disk."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from kdcli.data.collate import Batch
from kdcli.engine.pack import Packing
from kdcli.engine.projection import Projection
from kdcli.engine.token_store import TokenStore, sequence_keys
from kdcli.losses.coarse import Coarse
from kdcli.models.split import Head

_HEAD = "head.safetensors"
HIDDEN, IDS, LOG_PROBS = "hidden", "ids", "log_probs"


class CachedTeacher:
    """Gives what a live teacher gave when the cache was built.

    Args:
        store: hidden states by sequence.
        head: the teacher's head.
    """

    def __init__(self, store: TokenStore, head: Head) -> None:
        self.store, self.head = store, head

    def side(self, batch: Batch, packing: Packing) -> Projection:
        """Read the hidden states of a micro-batch's valid tokens."""
        device = batch.input_ids.device
        if not packing.count:
            return Projection(self.head.weight.new_zeros((0, self.head.weight.shape[1])), self.head)
        hidden = self.store.read(sequence_keys(batch), [HIDDEN])[HIDDEN]
        return Projection(hidden.to(device, non_blocking=True), self.head)


class CompactTeacher:
    """Gives the likeliest tokens of a teacher that was run before, and the mass of the rest.

    Args:
        store: ``ids`` and ``log_probs`` by sequence.
        top_k: tokens kept.
    """

    def __init__(self, store: TokenStore, top_k: int) -> None:
        self.store, self.top_k = store, top_k

    def side(self, batch: Batch, packing: Packing) -> Coarse:
        """Read what is known of a micro-batch's valid tokens."""
        if not packing.count:
            return Coarse(torch.zeros((0, self.top_k), dtype=torch.int64), torch.zeros((0, self.top_k + 1)))
        found = self.store.read(sequence_keys(batch), [IDS, LOG_PROBS])
        return Coarse(found[IDS].long(), found[LOG_PROBS]).to(batch.input_ids.device)


def save_head(head: Head, target: Path) -> None:
    """Write a head's tensors into a folder."""
    tensors = {"weight": head.weight} if head.bias is None else {"weight": head.weight, "bias": head.bias}
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, target / _HEAD)


def load_head(folder: Path, device: torch.device, *, scale: float, softcap: float | None) -> Head:
    """Read a head that :func:`save_head` wrote, onto a device."""
    tensors = load_file(folder / _HEAD, device=str(device))
    return Head(tensors["weight"], tensors.get("bias"), scale=scale, softcap=softcap)
