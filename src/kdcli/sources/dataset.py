"""The fixed data set, epoch after epoch."""

from collections.abc import Sequence
from typing import ClassVar

from kdcli.sources.base import Source, SourceContext, SourceNeeds
from kdcli.sources.sequences import KNOWN, RowWindows, TrainingSequence


class DatasetSource(Source):
    """The rows of the training data, in an order that follows from seed and epoch.

    Every objective can be trained on it, and a cache of the teacher knows its rows. The plain spec string
    ``fkl`` means ``fkl@dataset``.

    >>> DatasetSource().needs().offline
    True
    """

    mixable: ClassVar[bool] = True
    name: ClassVar[str] = "dataset"
    summary: ClassVar[str] = "the training rows as they are"
    reference: ClassVar[str] = "Hinton et al. 2015 (arXiv 1503.02531): a fixed transfer set"

    def needs(self) -> SourceNeeds:
        """Ask for nothing; say who wrote each label."""
        return SourceNeeds(facts=KNOWN)

    def open(self, context: SourceContext) -> "DatasetWindows":
        """Return the windows of a run."""
        return DatasetWindows(context)


class DatasetWindows(RowWindows):
    """Windows of a data set; every process takes a strided part of each step's sequences.

    Args:
        context: data set, settings, and which process this is.
    """

    def write(self, step: int, rows: Sequence[int]) -> list[TrainingSequence]:
        """Return the rows as they are."""
        return [TrainingSequence(self.context.dataset.examples[row], row) for row in rows]
