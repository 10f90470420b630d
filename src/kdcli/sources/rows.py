"""Windows over the rows of a data set: which of them form a step, whatever becomes of each."""

import math
from abc import abstractmethod
from collections.abc import Sequence

from kdcli.data.collate import Batch
from kdcli.data.order import epoch_steps
from kdcli.losses.supplied import ORIGINS
from kdcli.sources.base import Ground, Windows
from kdcli.sources.effort import Effort
from kdcli.sources.writing import Written, batches


class RowWindows(Windows):
    """Windows in which each row of a step becomes one sequence; every process takes a strided part of the rows.

    Args:
        ground: data set, settings, and which process this is.
    """

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self._epoch: tuple[int, list[list[int]]] | None = None
        self._given: list[Written] = []
        self._written, self._effort = 0, Effort()

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
        return self.all_members(step)[self.ground.rank :: self.ground.world]

    def all_members(self, step: int) -> list[int]:
        """Return the examples of a step, over all processes.

        Raises:
            ValueError: no such step.
        """
        if not 0 <= step < self.total_steps:
            raise ValueError(f"expected a step in 0..{self.total_steps - 1}, got {step}")
        epoch, at = divmod(step, self.steps_per_epoch)
        return self.steps(epoch)[at]

    def window(self, step: int) -> list[Batch]:
        """Return this process' micro-batches of a step, longest first.

        Raises:
            ValueError: no such step.
        """
        self.begin()
        self._given = self.write(step, self.members(step))
        return batches(self._given, self.ground)

    def begin(self) -> None:
        """Start to count the tokens of a step."""
        self._written, self._effort = 0, Effort()

    def count(self, fresh: Sequence[Written]) -> None:
        """Count what the student has just written for the step."""
        self._written += sum(one.targets for one in fresh)
        self._effort += Effort.of_answers("student", [(one.example.prompt_length, one.targets) for one in fresh])

    @abstractmethod
    def write(self, step: int, rows: Sequence[int]) -> list[Written]:
        """Return the sequence that each of some rows becomes at a step, in their order.

        Args:
            step: optimizer step, from 0.
            rows: indexes in the data set; every process is asked, if with none.
        """

    @property
    def generated(self) -> int:
        """Tokens that this process generated for the window given last."""
        return self._written

    @property
    def effort(self) -> Effort:
        """What this process' writing for the window given last took."""
        return self._effort

    def origins(self) -> dict[str, int]:
        """Return how many of this process' sequences of the window given last each origin has."""
        names = [one.origin for one in self._given]
        return {name: names.count(name) for name in ORIGINS if name in names}
