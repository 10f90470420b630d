"""What a statistic hands back: a number, its interval, and what stands behind both."""

import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from scipy.special import nctdtrinc, stdtr, stdtrit

Array: TypeAlias = NDArray[np.float64]
Unit: TypeAlias = Literal["seeds", "examples", "seeds and examples", "none"]

CONFIDENCE = 0.95
LEVEL = 0.05
POWER = 0.8


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
        freedom: degrees of freedom whose t quantile times ``error`` is half the interval; None: ``count - 1``.
    """

    mean: float
    low: float | None
    high: float | None
    count: int
    unit: Unit
    error: float | None = None
    p_value: float | None = None
    freedom: float | None = None

    @property
    def half_width(self) -> float | None:
        """Half the interval, for printing as ``mean ± half_width``."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    @property
    def std(self) -> float | None:
        """Standard deviation of one seed or example; None, never 0, where only one was seen."""
        return None if self.error is None else self.error * math.sqrt(self.count)


def smallest_detectable_difference(difference: Estimate, power: float = POWER, tests: int = 1) -> float | None:
    """Return the true difference that this design would have found with this power, at 5 % over all tests.

    Args:
        difference: a paired difference; its standard error and degrees of freedom are used.
        power: probability of finding it.
        tests: how many contenders share the 5 %; Holm's first step is the strictest.

    Returns:
        the difference in units of the score, or None without a standard error.

    >>> round(smallest_detectable_difference(Estimate(0.0, -1.0, 1.0, 3, "seeds", error=1.0)), 2)
    5.65
    """
    if difference.error is None:
        return None
    freedom = difference.count - 1 if difference.freedom is None else difference.freedom
    shift = nctdtrinc(freedom, 1.0 - power, stdtrit(freedom, 1.0 - LEVEL / tests / 2))
    return float(shift) * difference.error


def t_estimate(
    mean: float,
    error: float | None,
    count: int,
    unit: Unit,
    *,
    difference: bool = False,
) -> Estimate:
    """Return a mean with Student's t interval, and its p-value if it is a difference."""
    if error is None:
        return Estimate(mean, None, None, count, unit)
    half = error * float(stdtrit(count - 1, 0.5 + CONFIDENCE / 2))
    p_value = _p_value(mean, error, count) if difference else None
    return Estimate(mean, mean - half, mean + half, count, unit, error, p_value)


def _p_value(mean: float, error: float, count: int) -> float:
    if error == 0.0:
        return 1.0 if mean == 0.0 else 0.0
    return float(2.0 * stdtr(count - 1, -abs(mean) / error))
