"""How long the answers are."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kdcli.bounded import NOT_NEGATIVE, Bounds
from kdcli.metrics.base import TextMetric
from kdcli.metrics.curve import Curve, Series, series
from kdcli.metrics.score import Better, Score, ratio


class Length(TextMetric):
    """Mean answer length in words, and its ratio to the mean reference length.

    Words are split at spaces. Neither is better: read it beside the other scores, several of
    which reward short or long answers.

    >>> Length().compute(predictions=["one two three"], references=["one two"])
    {'length': 3.0, 'length_ratio': 1.5}
    """

    name: ClassVar[str] = "length"
    description: ClassVar[str] = "mean words per answer, and their ratio to the references' words"
    scores: ClassVar[dict[str, Better]] = {"length": "neither", "length_ratio": "neither"}
    bounds: ClassVar[dict[str, Bounds]] = {"length": NOT_NEGATIVE, "length_ratio": NOT_NEGATIVE}
    settings: ClassVar[str] = "unit:word|tok:space|refs:mean|agg:mean"
    splits_at_spaces: bool = True

    def measure(self, predictions: list[list[str]], references: list[list[str]], **also: Any) -> list[Score]:
        """Count the words of each example's answers and references."""
        words = np.array([_mean_words(answers) for answers in predictions])
        reference_words = np.array([_mean_words(valid) for valid in references])
        if not reference_words.any():
            raise self._refuse("METRIC-03", "the references hold no words", "give references with text")
        lengths = np.stack([words, np.ones_like(words)], axis=-1)
        ratios = np.stack([words, reference_words], axis=-1)
        each = np.array([[float(len(answer.split())) for answer in answers] for answers in predictions])
        one, other = (
            np.stack([each, np.broadcast_to(column[:, None], each.shape)], axis=-1)
            for column in (np.ones_like(words), reference_words)
        )
        return [
            Score("length", lengths, ratio(), "neither", answers=one),
            Score("length_ratio", ratios, ratio(), "neither", answers=other),
        ]

    def curves(self, predictions: list[list[str]], references: list[list[str]], **also: Any) -> list[Curve]:
        """Return the histogram of answer lengths beside that of reference lengths, in shares of the texts.

        Its bars hold 0, 1, 2 to 3, 4 to 7 words, and so on: each twice as many lengths as the one before.
        """
        sides = {"answers": _doublings(predictions), "references": _doublings(references)}
        count = max(int(places.max()) for places in sides.values()) + 1
        bars = tuple(_histogram(label, places, count) for label, places in sides.items())
        title = "Length of answers and references"
        return [Curve("lengths", title, "words", "share of the texts", bars, "bars", ticks=_names(count))]


def _doublings(texts: Sequence[Sequence[str]]) -> NDArray[np.int64]:
    """Return the bar each text belongs to: 0 for no word, k for 2^(k-1) up to, without, 2^k words."""
    return np.array([len(text.split()).bit_length() for several in texts for text in several], dtype=np.int64)


def _histogram(label: str, places: NDArray[np.int64], bars: int) -> Series:
    count = np.bincount(places, minlength=bars)
    return series(label, np.arange(bars), count / len(places), count=count)


def _names(bars: int) -> tuple[str, ...]:
    wide = [f"{2 ** (bar - 1)}–{2**bar - 1}" for bar in range(2, bars)]
    return ("0", "1", *wide)[:bars]


def _mean_words(texts: Sequence[str]) -> float:
    return math.fsum(len(text.split()) for text in texts) / len(texts)
