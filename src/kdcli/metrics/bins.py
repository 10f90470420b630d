"""Bins of predictions by confidence, as additive statistics: count, confidence, correctness of each bin."""

import numpy as np
from numpy.typing import NDArray

from kdcli.errors import InputError
from kdcli.metrics.score import Array, add_up, ratio


def check_bins(bins: int, metric: str) -> int:
    """Return the number of bins.

    Raises:
        InputError: it is below 1.
    """
    if bins < 1:
        raise InputError("METRIC-02", f"bins must be at least 1, got {bins}", where=f"metric {metric}", fix="bins=10")
    return bins


def equal_width(confidence: Array, bins: int) -> NDArray[np.int64]:
    """Return the bin of each confidence: bin k holds ``k/bins <= c < (k+1)/bins``, the last one also 1.

    Args:
        confidence: numbers from 0 to 1, of any shape.
        bins: number of bins.

    >>> equal_width(np.array([0.0, 0.29, 0.3, 0.7, 1.0]), 10).tolist()
    [0, 2, 3, 7, 9]
    """
    edges = np.arange(1, bins) / bins
    return np.searchsorted(edges, confidence, side="right").astype(np.int64)


def equal_mass(confidence: Array, bins: int) -> NDArray[np.int64]:
    """Return the bin of each confidence, the bins holding equally many predictions as far as ties allow.

    A prediction's bin is ``floor(bins * below / n)``, with ``below`` the predictions of lower confidence;
    equal confidences share a bin, so that no number depends on the order of the predictions.

    Args:
        confidence: numbers, ``[n]``.
        bins: number of bins; some stay empty where many confidences are equal.

    >>> equal_mass(np.array([0.9, 0.1, 0.2, 0.2]), 2).tolist()
    [1, 0, 0, 0]
    """
    below = np.searchsorted(np.sort(confidence), confidence, side="left")
    return below * bins // len(confidence)


def bin_sums(confidence: Array, correct: Array, example: NDArray[np.int64], examples: int, bins: int) -> Array:
    """Add up count, confidence and correctness by example and equal-width bin.

    Args:
        confidence: largest probability of each token, shape ``[n]``.
        correct: 1 where the top token is the label, shape ``[n]``.
        example: the token's example, shape ``[n]``.
        examples: number of examples.
        bins: number of equal-width bins.

    Returns:
        sums of shape ``[examples, 3 * bins]``, in the order count, confidence, correct of each bin.
    """
    values = np.stack([np.ones_like(confidence), confidence, correct], axis=-1)
    inside = example * bins + equal_width(confidence, bins)
    return add_up(values, inside, examples * bins).reshape(examples, 3 * bins)


def calibration_error(sums: Array) -> Array:
    """Return the expected calibration error from sums ``[..., 3 * bins]``; NaN where there are no tokens.

    >>> calibration_error(np.array([1.0, 0.75, 1.0, 1.0, 0.5, 0.0])).item()
    0.375
    """
    count, confidence, correct = _columns(sums)
    gaps = np.abs(correct - confidence).sum(-1)
    return ratio()(np.stack([gaps, count.sum(-1)], axis=-1))


def mean_calibration_error(sums: Array, bins: int) -> Array:
    """Return the mean calibration error over classes, from sums ``[..., classes * 3 * bins]``.

    >>> mean_calibration_error(np.array([1.0, 0.75, 1.0, 1.0, 0.5, 0.0]), 1).item()
    0.375
    """
    return np.asarray(calibration_error(sums.reshape(*sums.shape[:-1], -1, 3 * bins)).mean(-1))


def largest_gap(sums: Array) -> Array:
    """Return the maximum calibration error, ``max_k |accuracy_k - confidence_k|``, from sums ``[..., 3 * bins]``.

    Empty bins do not count; NaN where there are no tokens.

    >>> largest_gap(np.array([1.0, 0.75, 1.0, 1.0, 0.5, 0.0])).item()
    0.5
    """
    count, confidence, correct = _columns(sums)
    with np.errstate(divide="ignore", invalid="ignore"):
        gaps = np.where(count > 1e-9, np.abs(correct - confidence) / count, 0.0)
    return np.where(count.sum(-1) > 1e-9, gaps.max(-1), np.nan)


def _columns(sums: Array) -> tuple[Array, Array, Array]:
    count, confidence, correct = np.moveaxis(sums.reshape(*sums.shape[:-1], -1, 3), -1, 0)
    return count, confidence, correct
