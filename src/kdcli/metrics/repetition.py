"""How much an answer repeats itself."""

from typing import Any, ClassVar

import numpy as np

from kdcli.bounded import PERCENT, Bounds
from kdcli.metrics.base import TextMetric
from kdcli.metrics.score import Better, Score, over_answers


class Repetition(TextMetric):
    """Share of an answer's groups of four words that occurred in it before, times 100.

    ``1 - distinct / all`` over the 4-grams of one answer, the mean over answers and examples; words are
    split at spaces, case and punctuation kept. An answer of fewer than four words repeats nothing and
    counts 0. Loops show here, where distinct_4 looks at the whole set at once. Source: Welleck et al.
    2020, seq-rep-4.

    >>> Repetition().compute(predictions=["a b c d a b c d"], references=[""])["repetition"]
    20.0
    """

    name: ClassVar[str] = "repetition"
    description: ClassVar[str] = "share of an answer's 4-grams that it has said before"
    scores: ClassVar[dict[str, Better]] = {"repetition": "lower"}
    bounds: ClassVar[dict[str, Bounds]] = {"repetition": PERCENT}
    settings: ClassVar[str] = "n:4|tok:space|case:kept|agg:mean|x100"
    needs_references: ClassVar[bool] = False
    splits_at_spaces: bool = True

    def measure(self, predictions: list[list[str]], references: list[list[str]], **also: Any) -> list[Score]:
        """Average over answers and examples the share of repeated 4-grams."""
        values = np.array([[repetition(answer) for answer in answers] for answers in predictions])
        return [over_answers("repetition", values, "lower", scale=100.0)]


def repetition(text: str, n: int = 4) -> float:
    """Return the share of a text's n-grams that occurred before in it, between 0 and 1.

    >>> repetition("no no no", 1)
    0.6666666666666666
    """
    words = text.split()
    grams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    return (len(grams) - len(set(grams))) / len(grams) if grams else 0.0
