"""The source that reads a fixed data set, epoch after epoch."""

import math

from kdcli.config import TrainConfig
from kdcli.data.collate import Batch, collate
from kdcli.data.dataset import TokenDataset
from kdcli.data.order import epoch_steps, micro_batches
from kdcli.sources.base import Source


class DatasetSource(Source):
    """Windows of a data set; every device takes a strided part of each step's sequences.

    Args:
        dataset: the sequences; at least one.
        train: epochs, max_steps, batch_size, micro_tokens, length_window and seed.
        pad_id: token to pad with.
        rank: this device's number, from 0.
        world: devices in all.
    """

    def __init__(
        self, dataset: TokenDataset, train: TrainConfig, *, pad_id: int, rank: int = 0, world: int = 1
    ) -> None:
        if not len(dataset):
            raise ValueError("expected at least one example, got an empty data set")
        if not 0 <= rank < world:
            raise ValueError(f"expected a rank in 0..{world - 1}, got {rank}")
        self.dataset = dataset
        self.train = train
        self.pad_id = pad_id
        self.rank = rank
        self.world = world
        self._epoch: tuple[int, list[list[int]]] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the data; the last of them may be short."""
        return math.ceil(len(self.dataset) / self.train.batch_size)

    @property
    def total_steps(self) -> int:
        """``max_steps`` if given, else as many steps as the epochs hold, at least 1."""
        if self.train.max_steps is not None:
            return self.train.max_steps
        return max(1, math.ceil(self.train.epochs * self.steps_per_epoch - 1e-6))

    def steps(self, epoch: int) -> list[list[int]]:
        """Return the examples of each step of an epoch, over all devices."""
        if self._epoch is None or self._epoch[0] != epoch:  # computed once per epoch, the same whenever asked
            steps = epoch_steps(
                self.dataset.lengths,
                self.train.batch_size,
                seed=self.train.seed,
                epoch=epoch,
                window=self.train.length_window,
            )
            self._epoch = (epoch, steps)
        return self._epoch[1]

    def window(self, step: int) -> list[Batch]:
        """Return this device's micro-batches of a step, longest first.

        Raises:
            ValueError: no such step.
        """
        if not 0 <= step < self.total_steps:
            raise ValueError(f"expected a step in 0..{self.total_steps - 1}, got {step}")
        epoch, at = divmod(step, self.steps_per_epoch)
        mine = self.steps(epoch)[at][self.rank :: self.world]
        cut = micro_batches(mine, self.dataset.lengths, self.train.micro_tokens)
        return [collate(self.dataset.examples, indexes, self.pad_id) for indexes in cut]
