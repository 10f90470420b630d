"""Estimates: a number, its interval, and the statistics behind both."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from kdcli.bounded import ANYWHERE, Bounds, score_interval

Array: TypeAlias = NDArray[np.float64]
Unit: TypeAlias = Literal["seeds", "examples", "seeds and examples", "none"]

CONFIDENCE = 0.95
LEVEL = 0.05
POWER = 0.8
_ROUNDING = 1e-9
"""A standard error below this part of its mean is rounding: nothing varies."""


@runtime_checkable
class Redrawn(Protocol):
    """What a score of the whole set would be on other draws of the examples."""

    @property
    def examples(self) -> int:
        """Number of examples."""
        ...

    @property
    def value(self) -> Any:
        """From how often each example was drawn, ``[draws, examples]``, to the score of each draw, ``[draws]``."""
        ...


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

    @property
    def bounds(self) -> Bounds:
        """Lowest and highest value that it can have."""
        ...

    @property
    def redraw(self) -> Redrawn | None:
        """What a score without additive statistics would be on other draws; None where that is unknown."""
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
        count: how many seeds or examples stand behind it; seeds, where both do.
        unit: what was drawn at random; "none" for a number without spread.
        error: standard error; None where it is unknown.
        p_value: two-sided, against a difference of zero; None unless it is a difference.
    """

    mean: float
    low: float | None
    high: float | None
    count: int
    unit: Unit
    error: float | None = None
    p_value: float | None = None

    @property
    def half_width(self) -> float | None:
        """Half the interval; its middle is the mean only where it is not lopsided."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    @property
    def std(self) -> float | None:
        """Standard deviation of one seed or example; None, never 0, where only one was seen."""
        return None if self.error is None else self.error * math.sqrt(self.count)


def ends(
    mean: float, half: float, bounds: Bounds, examples: int, *, difference: bool = False
) -> tuple[float | None, float | None]:
    """Return the ends of an interval within the bounds of a score.

    A mean has the score interval, a difference of two scores ends where the score's range does; neither loses
    coverage by it. Nothing that varies gives no interval, unless the bounds tell how wide it is.

    Args:
        mean: the number.
        half: half of its symmetric interval.
        bounds: lowest and highest value of the score, or of either score that a difference is taken of.
        examples: independent values behind it, for the interval of a mean that does not vary.
        difference: whether it is a difference of two scores.

    >>> round(ends(0.0, 0.0, (0.0, 100.0), 100)[1], 2)
    3.79
    >>> ends(90.0, 30.0, (0.0, 100.0), 100, difference=True)
    (60.0, 100.0)
    """
    from scipy.special import stdtrit

    reach = bounds[1] - bounds[0]
    if half == 0.0 and (difference or reach == math.inf):
        return None, None
    if difference:
        return max(mean - half, -reach), min(mean + half, reach)
    least = float(stdtrit(examples - 1, 0.5 + CONFIDENCE / 2)) ** 2 / examples
    low, high = score_interval(mean, half, bounds, least)
    return float(low), float(high)


def t_estimate(
    mean: float,
    error: float | None,
    count: int,
    unit: Unit,
    *,
    difference: bool = False,
    bounds: Bounds = ANYWHERE,
) -> Estimate:
    """Return a mean with Student's t interval, and its p-value if it is a difference.

    Args:
        mean: the number.
        error: its standard error; None gives no interval.
        count: how many values stand behind it.
        unit: what they are.
        difference: whether to test it against zero.
        bounds: lowest and highest value of the score, or of either score that a difference is taken of.
    """
    from scipy.special import stdtrit

    if error is None:
        return Estimate(mean, None, None, count, unit)
    error = error if error > _ROUNDING * abs(mean) else 0.0
    half = error * float(stdtrit(count - 1, 0.5 + CONFIDENCE / 2))
    p_value = _p_value(mean, error, count) if difference else None
    low, high = ends(mean, half, bounds, count, difference=difference)
    return Estimate(mean, low, high, count, unit, error, p_value)


def _p_value(mean: float, error: float, count: int) -> float:
    """Return Student's p; where all differences are equal, the share of their signs that is as one-sided."""
    from scipy.special import stdtr

    if error == 0.0:
        return 1.0 if mean == 0.0 else 2.0 ** (1 - count)
    return float(2.0 * stdtr(count - 1, -abs(mean) / error))


# Means and paired differences over training seeds alone, by Student's t: three numbers carry no bootstrap.


def over_seeds(values: Sequence[float] | Mapping[int, float], bounds: Bounds = ANYWHERE) -> Estimate:
    """Estimate the mean over training seeds, by Student's t.

    Args:
        values: one score per seed.
        bounds: lowest and highest value of the score.

    >>> estimate = over_seeds([0.30, 0.31, 0.32])
    >>> round(estimate.low, 4), round(estimate.high, 4)
    (0.2852, 0.3348)
    >>> over_seeds([0.3]).low is None
    True
    """
    listed = list(values.values()) if isinstance(values, Mapping) else list(values)
    return seeds_estimate(listed, bounds)


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
    return seeds_estimate([contender[seed] - baseline[seed] for seed in shared], ANYWHERE, difference=True)


def seeds_estimate(values: Sequence[float], bounds: Bounds, *, difference: bool = False) -> Estimate:
    """Estimate the mean of scores or of paired differences over training seeds, by Student's t.

    Args:
        values: one per seed.
        bounds: lowest and highest value of the score, or of either score that a difference is taken of.
        difference: whether to test it against zero.
    """
    return t_estimate(*_mean_and_error(values), len(values), "seeds", difference=difference, bounds=bounds)


def _mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and its standard error, the same to the last bit in any order; no error from one value."""
    count = len(values)
    mean = math.fsum(values) / count
    if count < 2 or not math.isfinite(mean):
        return mean, None
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return mean, math.sqrt(variance / count)
