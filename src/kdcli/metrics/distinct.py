"""How little the generated texts repeat themselves."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from kdcli.bounded import PERCENT, Bounds
from kdcli.metrics.base import TextMetric
from kdcli.metrics.score import Better, Score, ratio


class Distinct(TextMetric):
    """Distinct n-grams over all n-grams of the whole generated set, times 100, for n = 1 to 4.

    Words are split at spaces, case and punctuation kept; n-grams do not cross answers. Taken for
    the answers of each sampling seed, then averaged. It falls as the set grows: compare equal
    numbers of answers only. A number of the whole set, so it has no interval over examples.

    >>> Distinct().compute(predictions=["a b c d a b c d"], references=[""])["distinct_4"]
    80.0
    """

    name: ClassVar[str] = "distinct"
    description: ClassVar[str] = "distinct n-grams over all n-grams of the generated set"
    scores: ClassVar[dict[str, Better]] = {
        "distinct_1": "higher",
        "distinct_2": "higher",
        "distinct_3": "higher",
        "distinct_4": "higher",
    }
    bounds: ClassVar[dict[str, Bounds]] = {
        "distinct_1": PERCENT,
        "distinct_2": PERCENT,
        "distinct_3": PERCENT,
        "distinct_4": PERCENT,
    }
    settings: ClassVar[str] = "tok:space|case:kept|set:seed|agg:mean|x100"
    needs_references: ClassVar[bool] = False
    splits_at_spaces: bool = True

    def measure(self, predictions: list[list[str]], references: list[list[str]], **also: Any) -> list[Score]:
        """Average over sampling seeds the share of distinct n-grams in that seed's answers."""
        sets = [[text.split() for text in answers] for answers in zip(*predictions, strict=True)]
        return [
            Score(f"distinct_{n}", None, ratio(), "higher", corpus=_mean(distinct(words, n) for words in sets))
            for n in range(1, 5)
        ]


def distinct(texts: Iterable[Sequence[str]], n: int) -> float:
    """Return the percentage of distinct n-grams in a set of texts given as words; 0 if there are none.

    >>> distinct(["a b a".split(), "b a".split()], 2)
    66.66666666666667
    """
    grams = [tuple(words[start : start + n]) for words in texts for start in range(len(words) - n + 1)]
    return 100.0 * len(set(grams)) / len(grams) if grams else 0.0


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return math.fsum(listed) / len(listed)
