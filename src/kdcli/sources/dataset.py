"""The source that reads a fixed data set, epoch after epoch."""

import math
from typing import ClassVar

from kdcli.data.collate import Batch, collate
from kdcli.data.order import epoch_steps, micro_batches
from kdcli.sources.base import Ground, Source, Windows


class DatasetSource(Source):
    """The rows of the training data, in an order that follows from seed and epoch."""

    name: ClassVar[str] = "dataset"
    summary: ClassVar[str] = "the training rows as they are"
    reference: ClassVar[str] = "Hinton et al. 2015 (arXiv 1503.02531): a fixed transfer set"

    def open(self, ground: Ground) -> "DatasetWindows":
        """Return the windows of a run."""
        return DatasetWindows(ground)


class DatasetWindows(Windows):
    """Windows of a data set; every process takes a strided part of each step's sequences.

    Args:
        ground: data set, settings, and which process this is.
    """

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self._epoch: tuple[int, list[list[int]]] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the data; the last of them may be short."""
        return math.ceil(len(self.ground.dataset) / self.ground.train.batch_size)

    @property
    def total_steps(self) -> int:
        """``max_steps`` if given, else as many steps as the epochs hold, at least 1."""
        if self.ground.train.max_steps is not None:
            return self.ground.train.max_steps
        return max(1, math.ceil(self.ground.train.epochs * self.steps_per_epoch - 1e-6))

    def steps(self, epoch: int) -> list[list[int]]:
        """Return the examples of each step of an epoch, over all processes."""
        if self._epoch is None or self._epoch[0] != epoch:  # computed once per epoch, the same whenever asked
            train = self.ground.train
            steps = epoch_steps(
                self.ground.dataset.lengths,
                train.batch_size,
                seed=train.seed,
                epoch=epoch,
                window=train.length_window,
            )
            self._epoch = (epoch, steps)
        return self._epoch[1]

    def members(self, step: int) -> list[int]:
        """Return this process' examples of a step.

        Raises:
            ValueError: no such step.
        """
        if not 0 <= step < self.total_steps:
            raise ValueError(f"expected a step in 0..{self.total_steps - 1}, got {step}")
        epoch, at = divmod(step, self.steps_per_epoch)
        return self.steps(epoch)[at][self.ground.rank :: self.ground.world]

    def window(self, step: int) -> list[Batch]:
        """Return this process' micro-batches of a step, longest first.

        Raises:
            ValueError: no such step.
        """
        dataset = self.ground.dataset
        cut = micro_batches(self.members(step), dataset.lengths, self.ground.train.micro_tokens)
        return [collate(dataset.examples, indexes, self.ground.pad_id) for indexes in cut]
