"""How long the answers are."""

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from kdcli.metrics.base import TextMetric
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
    settings: ClassVar[str] = "unit:word|tok:space|refs:mean|agg:mean"

    def measure(self, predictions: list[list[str]], references: list[list[str]]) -> list[Score]:
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


def _mean_words(texts: Sequence[str]) -> float:
    return math.fsum(len(text.split()) for text in texts) / len(texts)
