"""Reliability diagrams: how often predictions are right, by how sure they are."""

import numpy as np
from numpy.typing import NDArray

from kdcli.bounded import SHARE, score_interval
from kdcli.metrics.bins import equal_mass
from kdcli.metrics.curve import Curve, Series, series
from kdcli.metrics.score import Array, add_up

_NORMAL = 1.959963984540054
"""The 97.5 % quantile of the normal distribution."""


def reliability_curve(name: str, title: str, parts: tuple[Series, ...]) -> Curve:
    """Return the diagram of one or several binnings, side by side."""
    return Curve(name, title, "confidence", "accuracy", parts, "reliability")


def equal_width_series(label: str, sums: Array) -> Series:
    """Return the bins that hold predictions, from the sums of equal-width bins.

    Args:
        label: what the picture calls it.
        sums: count, confidence and correct of each bin, ``[examples, 3 * bins]``.

    Returns:
        x is the mean confidence of a bin, y its accuracy; ``left`` and ``right`` are its edges.
        ``low`` and ``high`` are Wilson's interval at the effective number of predictions, for
        predictions of one example are not independent.

    >>> equal_width_series("", np.array([[0.0, 0.0, 0.0, 4.0, 3.0, 2.0]])).y
    (0.5,)
    """
    bins = sums.shape[-1] // 3
    return _series(label, sums, np.arange(bins) / bins, np.arange(1, bins + 1) / bins)


def equal_mass_series(
    label: str, confidence: Array, correct: Array, example: NDArray[np.int64], examples: int, bins: int
) -> Series:
    """Return bins of equally many predictions; the edges are the lowest and the highest confidence in each.

    Args:
        label: what the picture calls it.
        confidence: largest probability of each prediction, ``[n]``.
        correct: 1 where it is right, ``[n]``.
        example: the example each belongs to, ``[n]``.
        examples: number of examples.
        bins: number of bins.
    """
    inside = equal_mass(confidence, bins)
    values = np.stack([np.ones_like(confidence), confidence, correct], axis=-1)
    sums = add_up(values, example * bins + inside, examples * bins).reshape(examples, 3 * bins)
    left, right = np.full(bins, np.inf), np.full(bins, -np.inf)
    np.minimum.at(left, inside, confidence)
    np.maximum.at(right, inside, confidence)
    return _series(label, sums, left, right)


def _series(label: str, sums: Array, left: Array, right: Array) -> Series:
    count, confidence, correct = np.moveaxis(sums.reshape(len(sums), -1, 3), -1, 0)
    held = count.sum(0) > 0
    count, confidence, correct = count[:, held], confidence[:, held], correct[:, held]
    number = count.sum(0)
    accuracy = correct.sum(0) / number
    trials = _effective(count, correct, accuracy)
    half = _NORMAL * np.sqrt(accuracy * (1 - accuracy) / trials)
    low, high = score_interval(accuracy, half, SHARE, _NORMAL**2 / trials)
    return series(
        label, confidence.sum(0) / number, accuracy, low=low, high=high, count=number,
        left=left[held], right=right[held],
    )  # fmt: skip


def _effective(count: Array, correct: Array, accuracy: Array) -> Array:
    """Return how many independent predictions would be as uncertain, ``[bins]``, from counts ``[examples, bins]``."""
    number, owners = count.sum(0), (count > 0).sum(0)
    spread = ((correct - accuracy * count) ** 2).sum(0) * owners / np.maximum(owners - 1, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = accuracy * (1 - accuracy) * number**2 / spread
    return np.where(spread > 0, np.clip(found, 1.0, number), owners)
