"""What the engine asks of a source: the micro-batches of any step, in any order, at any time."""

from abc import ABC, abstractmethod

from kdcli.data.collate import Batch


class Source(ABC):
    """Supplies training windows; a window is what one optimizer step reads.

    A source is a pure function of its settings and the step: it keeps no position and no random
    state, so a run that resumes asks for the next step and gets what it would have got.
    """

    @property
    @abstractmethod
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the data."""

    @property
    @abstractmethod
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""

    @abstractmethod
    def steps(self, epoch: int) -> list[list[int]]:
        """Return the examples of each step of an epoch, over all devices."""

    @abstractmethod
    def window(self, step: int) -> list[Batch]:
        """Return this device's micro-batches of a step, counted from 0; empty if none fall to it."""
