"""Collective communication between steps, and the error of a lost rank."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from kdcli.data.batching import Batch
from kdcli.errors import MachineError
from kdcli.models.packing import count_valid
from kdcli.sources.token_counts import TokenCounts


@dataclass(frozen=True)
class Counted:
    """What one optimizer step holds, over all processes.

    Args:
        tokens: response tokens.
        sequences: sequences with at least one of them.
        read: tokens that go through the student's trunk.
        generated: tokens that were generated for it.
        effort: what that took.
        most: most micro-batches that any of them has.
    """

    tokens: int
    sequences: int
    read: int
    generated: int
    effort: TokenCounts
    most: int


class Processes:
    """The processes as the loop sees them: it alone, or one of several.

    Args:
        accelerator: accelerate's view of them.
        device: where this one computes.

    Attributes:
        size: how many there are.
        index: which one this is.
        main: whether it is rank 0, which writes and logs.
    """

    def __init__(self, accelerator: Accelerator, device: torch.device) -> None:
        self._accelerator, self._device = accelerator, device
        self.size, self.index = accelerator.num_processes, accelerator.process_index
        self.main = accelerator.is_main_process

    def count(self, window: list[Batch], generated: int, effort: TokenCounts) -> Counted:
        """Add up what all processes hold of a step.

        Args:
            window: this process's micro-batches.
            generated: tokens it generated for them.
            effort: what that took.
        """
        read = sum(batch.tokens for batch in window)
        own = [*count_valid(window), read, generated, *effort.counts, len(window)]
        table = self._accelerator.gather(torch.tensor([own], device=self._device))
        assert isinstance(table, Tensor)
        tokens, sequences, read, generated, *counts, _ = table.sum(0).tolist()
        return Counted(tokens, sequences, read, generated, TokenCounts(*counts), most=int(table[:, -1].amax()))

    def totals(self, parts: dict[str, Tensor]) -> dict[str, float]:
        """Sum each part over the processes; one without a token of its own knows no parts but the loss."""
        own = dict(zip(parts, torch.stack(list(parts.values())).tolist(), strict=True))
        if self.size == 1:
            return own
        table = gather_object([own])
        names = max(table, key=len)
        return {name: sum(line.get(name, 0.0) for line in table) for name in names}

    def greatest(self, number: int) -> int:
        """Return the greatest of all processes' numbers; all agree."""
        if self.size == 1:
            return number
        table = self._accelerator.gather(torch.tensor([number], device=self._device))
        assert isinstance(table, Tensor)
        return int(table.amax())

    def rows(self, window: list[Batch]) -> list[int]:
        """Return the rows of all processes' micro-batches."""
        return gather_object([index for batch in window for index in batch.example.tolist() if index >= 0])

    def from_first(self, value: Any) -> Any:
        """Return what the first process holds."""
        return broadcast_object_list([value])[0] if self.size > 1 else value

    def wait(self) -> None:
        """Wait until all are here."""
        self._accelerator.wait_for_everyone()


# What it looks like when another process of the run is gone.


LOST = "PROC-01"
_SIGNS = ("gloo", "Connection closed by peer", "Connection reset by peer", "NCCL", "Timed out waiting")


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error says that another process no longer answers.

    >>> is_lost_peer(RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4567"))
    True
    >>> is_lost_peer(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    False
    """
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def lost_peer(step: int, saved: int | None, command: str) -> MachineError:
    """Return the error of a run that lost a process.

    Args:
        step: optimizer steps done.
        saved: those of the checkpoint there is; None without one.
        command: what to type to go on.
    """
    found = f"saved at step {saved}" if saved is not None else "nothing is saved yet"
    what = f"another process of the run ended or does not answer, at step {step + 1}; {found}"
    return MachineError(LOST, what, fix=f"go on with: {command}")
