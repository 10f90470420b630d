"""How many answers never ended."""

from typing import Any, ClassVar

import numpy as np

from kdcli.bounded import PERCENT, Bounds
from kdcli.metrics.base import TextMetric
from kdcli.metrics.score import Better, Score, over_answers


class WithoutEnd(TextMetric):
    """Share of answers that the model did not end itself: cut at the length limit, times 100.

    An answer ends when the model samples its end token. Of a file of answers it is known only where each
    line says so, as ``"ended": true``, or a list with one entry per prediction. ``compute`` takes
    ``ended``, ``[examples][answers]``.

    >>> WithoutEnd().compute(predictions=["yes", "no, no, no"], references=["", ""], ended=[[True], [False]])
    {'without_end': 50.0}
    """

    name: ClassVar[str] = "without_end"
    description: ClassVar[str] = "share of answers without end token, cut at the length limit"
    scores: ClassVar[dict[str, Better]] = {"without_end": "lower"}
    bounds: ClassVar[dict[str, Bounds]] = {"without_end": PERCENT}
    settings: ClassVar[str] = "agg:mean|x100"
    needs_references: ClassVar[bool] = False
    also_reads: tuple[str, ...] = ("ended",)

    def measure(self, predictions: list[list[str]], references: list[list[str]], **also: Any) -> list[Score]:
        """Count the answers of each example that were cut."""
        cut = np.array([[float(not ended) for ended in answers] for answers in also["ended"]])
        if cut.shape != (len(predictions), len(predictions[0])):
            what = f'"ended" has shape {list(cut.shape)}, expected [{len(predictions)}, {len(predictions[0])}]'
            raise self._refuse("METRIC-03", what, "give one entry for every answer")
        return [over_answers("without_end", cut, "lower", scale=100.0)]
