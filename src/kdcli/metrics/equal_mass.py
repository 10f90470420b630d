"""The calibration error over bins that hold equally many predictions, on any draw of the examples."""

from functools import partial

import numpy as np
from numpy.typing import NDArray

from kdcli.metrics.score import Array, Redraw, add_up

_AT_ONCE = 2**20
"""Numbers of one table of weights, so that many draws of many predictions stay small."""


def equal_mass_error(confidence: Array, correct: Array, example: NDArray[np.int64], examples: int, bins: int) -> Redraw:
    """Return the expected calibration error over equal-mass bins, as a function of the draw.

    A prediction's bin is ``floor(bins * below / n)``, with ``below`` the drawn predictions of lower confidence and
    ``n`` all drawn ones. Examples are put into an order of their own, so that no number depends on the given one.

    Args:
        confidence: forecast probability of each prediction, ``[n]``.
        correct: 1 where it came true, ``[n]``.
        example: the example each prediction belongs to, ``[n]``.
        examples: number of examples.
        bins: number of bins.

    >>> confidence, correct = np.array([0.1, 0.3, 0.9, 0.7]), np.array([0.0, 0.0, 1.0, 1.0])
    >>> round(equal_mass_error(confidence, correct, np.arange(4), 4, 2).whole(), 12)
    0.2
    """
    sums = add_up(np.stack([confidence, correct, np.ones_like(correct)], axis=-1), example, examples)
    rank = np.empty(examples, dtype=np.int64)
    rank[np.lexsort(sums.T)] = np.arange(examples)
    order = np.lexsort((rank[example], correct, confidence))
    owner, sure, right = rank[example][order], confidence[order], correct[order]
    first = np.searchsorted(sure, sure, side="left")
    return Redraw(partial(_errors, owner=owner, sure=sure, right=right, first=first, bins=bins), examples)


def _errors(drawn: Array, *, owner: np.ndarray, sure: Array, right: Array, first: np.ndarray, bins: int) -> Array:
    step = max(1, _AT_ONCE // len(sure))
    parts = [
        _some(drawn[start : start + step][:, owner], sure, right, first, bins) for start in range(0, len(drawn), step)
    ]
    return np.concatenate(parts)


def _some(weight: Array, sure: Array, right: Array, first: np.ndarray, bins: int) -> Array:
    """Return the error of some draws from the weight of each prediction, ``[draws, n]``."""
    upto = np.cumsum(weight, axis=1)
    number = upto[:, -1:]
    below = np.take_along_axis(np.pad(upto, ((0, 0), (1, 0))), first[None], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        inside = np.minimum(below * bins // np.maximum(number, 1.0), bins - 1).astype(np.int64)
        cell = inside + bins * np.arange(len(weight))[:, None]
        gaps = np.bincount(cell.ravel(), (weight * (right - sure)).ravel(), minlength=bins * len(weight))
        return np.abs(gaps.reshape(-1, bins)).sum(1) / number[:, 0]
