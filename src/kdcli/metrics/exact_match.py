"""Exact match after normalisation."""

import string
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from kdcli.bounded import PERCENT, Bounds
from kdcli.metrics.base import TextMetric
from kdcli.metrics.score import Better, Score, ratio

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class ExactMatch(TextMetric):
    """Share of answers equal to a reference after normalisation, times 100.

    Both sides are lower-cased, ASCII punctuation is removed, and runs of spaces become one;
    articles stay. A match with any reference counts.

    >>> ExactMatch().compute(predictions=["Yes!", "no"], references=["yes", "yes"])["exact_match"]
    50.0
    """

    name: ClassVar[str] = "exact_match"
    description: ClassVar[str] = "share of answers equal to a reference after normalisation"
    scores: ClassVar[dict[str, Better]] = {"exact_match": "higher"}
    bounds: ClassVar[dict[str, Bounds]] = {"exact_match": PERCENT}
    settings: ClassVar[str] = "case:lower|punct:removed|space:one|articles:kept|refs:max|agg:mean|x100"

    def measure(self, predictions: list[list[str]], references: list[list[str]], **also: Any) -> list[Score]:
        """Count the answers of each example that match."""
        hits = np.array(
            [
                [float(exact_match(answer, valid)) for answer in answers]
                for answers, valid in zip(predictions, references, strict=True)
            ]
        )
        answers = np.stack([hits, np.ones_like(hits)], axis=-1)
        count = hits.shape[1]
        return [Score("exact_match", answers.sum(1), ratio(100.0), "higher", answers=answers * count)]


def exact_match(prediction: str, references: Iterable[str]) -> bool:
    """Say whether an answer equals one of its references after normalisation.

    >>> exact_match("It's  4.", ["its 4"])
    True
    """
    answer = normalise(prediction)
    return any(answer == normalise(reference) for reference in references)


def normalise(text: str) -> str:
    """Lower-case, remove ASCII punctuation, and reduce runs of spaces to one.

    >>> normalise(" The  End. ")
    'the end'
    """
    return " ".join(text.lower().translate(_NO_PUNCTUATION).split())
