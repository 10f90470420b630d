"""How often student and teacher would say the same next token."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from kdcli.bounded import PERCENT, Bounds
from kdcli.metrics.base import TokenMetric
from kdcli.metrics.score import Array, Better, Score, mean_and_count, ratio


class Agreement(TokenMetric):
    """Share of response tokens at which student and teacher have the same top token, times 100.

    Prefixes are the reference responses'. ``compute`` takes the student's logits ``[n, v]`` as
    predictions, the teacher's as references.

    >>> Agreement().compute(predictions=[[1.0, 0.0], [0.0, 1.0]], references=[[3.0, 0.0], [1.0, 0.0]])["agreement"]
    50.0
    """

    name: ClassVar[str] = "agreement"
    description: ClassVar[str] = "share of tokens where student and teacher have the same top token"
    scores: ClassVar[dict[str, Better]] = {"agreement": "higher"}
    bounds: ClassVar[dict[str, Bounds]] = {"agreement": PERCENT}
    settings: ClassVar[str] = "top:1|prefix:reference|agg:token-mean|x100"
    facts: ClassVar[tuple[str, ...]] = ("agree",)

    def measure(self, facts: Mapping[str, Array], example: NDArray[np.int64], examples: int) -> list[Score]:
        """Count the agreements of each example."""
        return [Score("agreement", mean_and_count(facts["agree"], example, examples), ratio(100.0), "higher")]
