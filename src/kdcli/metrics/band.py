"""A line over positions with its 95 % interval over examples, from the same additive statistics as a score."""

import numpy as np
from scipy.special import stdtrit

from kdcli.bounded import ANYWHERE, Bounds, score_interval
from kdcli.metrics.curve import Series, Values, series
from kdcli.metrics.score import Array, Finish


def banded(
    label: str, x: Values, sums: Array, finish: Finish, count: Values | None = None, bounds: Bounds = ANYWHERE
) -> Series:
    """Make a series whose every point is a score, with the jackknife's interval.

    ``y = finish(sum_i sums_i)``; with ``y_i`` the same without example i, ``n`` examples and their
    mean ``m``, the standard error is ``sqrt((n - 1)/n sum_i (y_i - m)^2)`` and the band Student's t
    interval with n - 1 degrees of freedom. Examples without statistics at a point do not count
    there; with fewer than two the band is NaN.

    Args:
        label: what a legend calls it.
        x: where each point stands, ``[points]``.
        sums: additive statistics of each example at each point, ``[examples, points, k]``.
        finish: turns summed statistics ``[..., k]`` into scores ``[...]``.
        count: how many observations each point summarises, ``[points]``.
        bounds: lowest and highest value of a point; the band stays within.

    Reference: Efron and Tibshirani 1993, An Introduction to the Bootstrap, equation 11.5.

    >>> from kdcli.metrics.score import ratio
    >>> line = banded("mean", [1], np.array([[[1.0, 1.0]], [[3.0, 1.0]]]), ratio())
    >>> line.y, round(line.low[0], 4), round(line.high[0], 4)
    ((2.0,), -10.7062, 14.7062)
    """
    whole = sums.sum(0)
    y = np.asarray(finish(whole), dtype=np.float64)
    examples = np.maximum((sums != 0.0).any(-1).sum(0), 2)
    least = stdtrit(examples - 1, 0.975) ** 2 / examples
    low, high = score_interval(y, _half_width(sums, whole, finish), bounds, least)
    return series(label, x, y, low=low, high=high, count=count)


def _half_width(sums: Array, whole: Array, finish: Finish) -> Array:
    counted = (sums != 0.0).any(-1)
    examples = counted.sum(0)
    enough = np.maximum(examples, 2)
    left_out = np.where(counted, np.asarray(finish(whole - sums), dtype=np.float64), 0.0)
    apart = np.where(counted, left_out - left_out.sum(0) / enough, 0.0)
    error = np.sqrt((enough - 1) / enough * np.square(apart).sum(0))
    return np.where(examples > 1, error * stdtrit(enough - 1, 0.975), np.nan)
