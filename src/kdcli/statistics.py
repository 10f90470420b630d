"""Means with honest intervals, over seeds or over examples, alone or as paired differences.

Seeds: Student's t, since three numbers carry no bootstrap. Examples: the jackknife of whatever
turns summed statistics into a score, with Student's t; for a plain mean that is the usual t
interval. One value has a mean and no interval.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from scipy.special import nctdtrinc, stdtr, stdtrit

from kdcli.errors import InputError

Array = NDArray[np.float64]

CONFIDENCE = 0.95


@runtime_checkable
class Additive(Protocol):
    """A score made of additive statistics; metrics yield them."""

    @property
    def sums(self) -> Array | None:
        """Statistics of each example, ``[examples, k]``; None for a score of the whole set."""
        ...

    @property
    def value(self) -> float:
        """The score of all examples together."""
        ...

    def finish(self, sums: Any, /) -> Any:
        """Turn summed statistics ``[..., k]`` into scores ``[...]``."""
        ...


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval.

    Args:
        mean: the number itself.
        low: lower end of the interval; None where there is no interval.
        high: upper end.
        count: how many seeds or examples stand behind it.
        unit: what was counted; "none" for a number without spread.
        error: standard error; None where it is unknown.
        p_value: two-sided, against a difference of zero; None unless it is a difference.
    """

    mean: float
    low: float | None
    high: float | None
    count: int
    unit: Literal["seeds", "examples", "none"]
    error: float | None = None
    p_value: float | None = None

    @property
    def half_width(self) -> float | None:
        """Half the interval, for printing as ``mean ± half_width``."""
        return None if self.error is None else self.error * _quantile(self.count)

    @property
    def std(self) -> float | None:
        """Standard deviation of one seed or example; None, never 0, where only one was seen."""
        return None if self.error is None else self.error * math.sqrt(self.count)


def over_seeds(values: Sequence[float] | Mapping[int, float]) -> Estimate:
    """Estimate the mean over training seeds, by Student's t.

    Args:
        values: one score per seed.

    >>> estimate = over_seeds([0.30, 0.31, 0.32])
    >>> round(estimate.low, 4), round(estimate.high, 4)
    (0.2852, 0.3348)
    >>> over_seeds([0.3]).low is None
    True
    """
    listed = list(values.values()) if isinstance(values, Mapping) else list(values)
    return _estimate(*_mean_and_error(listed), len(listed), "seeds")


def over_examples(score: Additive) -> Estimate:
    """Estimate a score with its uncertainty from the choice of held-out examples.

    Examples without any statistics (no tokens) are not counted. A score of the whole set has no
    interval.
    """
    if score.sums is None:
        return Estimate(score.value, None, None, 1, "none")
    counted = score.sums[np.any(score.sums != 0.0, axis=-1)]
    return _estimate(score.value, _jackknife_error(_left_out(score, counted)), len(counted), "examples")


def difference_over_seeds(contender: Mapping[int, float], baseline: Mapping[int, float]) -> Estimate | None:
    """Estimate contender minus baseline, paired by seed.

    Args:
        contender: seed -> score.
        baseline: seed -> score.

    Returns:
        the mean difference over the seeds both have, or None if they share none.

    >>> difference_over_seeds({0: 3.0, 1: 5.0}, {1: 4.0, 2: 9.0}).mean
    1.0
    """
    shared = sorted(contender.keys() & baseline.keys())
    if not shared:
        return None
    mean, error = _mean_and_error([contender[seed] - baseline[seed] for seed in shared])
    return _estimate(mean, error, len(shared), "seeds", difference=True)


def difference_over_examples(contender: Additive, baseline: Additive) -> Estimate:
    """Estimate contender minus baseline, paired by example: the same example is left out of both.

    Returns:
        the difference; without interval for scores of the whole set.

    Raises:
        InputError: the two were measured on different numbers of examples.
    """
    difference = contender.value - baseline.value
    if contender.sums is None or baseline.sums is None:
        return Estimate(difference, None, None, 1, "none")
    if len(contender.sums) != len(baseline.sums):
        what = f"{len(contender.sums)} examples against {len(baseline.sums)}"
        raise InputError("STAT-01", what, where="paired difference", fix="score both on the same examples")
    counted = np.any(contender.sums != 0.0, axis=-1) | np.any(baseline.sums != 0.0, axis=-1)
    left_out = _left_out(contender, contender.sums[counted]) - _left_out(baseline, baseline.sums[counted])
    return _estimate(difference, _jackknife_error(left_out), len(left_out), "examples", difference=True)


def smallest_detectable_difference(difference: Estimate, power: float = 0.8) -> float | None:
    """Return the true difference that a paired t-test at 5 % would find with this power.

    Args:
        difference: a paired difference; its standard error and count are used.
        power: probability of finding it.

    Returns:
        the difference in units of the score, or None without a standard error.

    >>> round(smallest_detectable_difference(Estimate(0.0, -1.0, 1.0, 3, "seeds", error=1.0)), 2)
    5.65
    """
    if difference.error is None:
        return None
    shift = nctdtrinc(difference.count - 1, 1.0 - power, _quantile(difference.count))
    return float(shift) * difference.error


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjust p-values for having tested several contenders, by Holm's step-down rule.

    Args:
        p_values: None stays None and does not count.

    >>> holm([0.01, None, 0.04, 0.03])
    [0.03, None, 0.06, 0.06]
    """
    tested = sorted((value, index) for index, value in enumerate(p_values) if value is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (value, index) in enumerate(tested):
        highest = max(highest, min(1.0, (len(tested) - rank) * value))
        adjusted[index] = highest
    return adjusted


def _estimate(
    mean: float, error: float | None, count: int, unit: Literal["seeds", "examples"], *, difference: bool = False
) -> Estimate:
    if error is None:
        return Estimate(mean, None, None, count, unit)
    half = error * _quantile(count)
    p_value = _p_value(mean, error, count) if difference else None
    return Estimate(mean, mean - half, mean + half, count, unit, error, p_value)


def _quantile(count: int) -> float:
    return float(stdtrit(count - 1, 0.5 + CONFIDENCE / 2))


def _p_value(mean: float, error: float, count: int) -> float:
    if error == 0.0:
        return 1.0 if mean == 0.0 else 0.0
    return float(2.0 * stdtr(count - 1, -abs(mean) / error))


def _mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and its standard error, the same to the last bit in any order; no error from one value."""
    count = len(values)
    mean = math.fsum(values) / count
    if count < 2 or not math.isfinite(mean):
        return mean, None
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return mean, math.sqrt(variance / count)


def _left_out(score: Additive, sums: Array) -> Array:
    """The score without each example in turn, ``[examples]``."""
    whole = np.array([math.fsum(column) for column in sums.T])
    with np.errstate(invalid="ignore"):
        return np.asarray(score.finish(whole - sums), dtype=np.float64)


def _jackknife_error(left_out: Array) -> float | None:
    """Standard error from leave-one-out values; None where it cannot be told."""
    count = len(left_out)
    if count < 2 or not np.isfinite(left_out).all():
        return None
    mean = math.fsum(left_out) / count
    return math.sqrt((count - 1) / count * math.fsum((left_out - mean) ** 2))
