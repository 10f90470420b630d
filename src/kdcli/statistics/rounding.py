"""Digits worth printing, given the uncertainty."""

import math
from collections.abc import Iterable
from statistics import median_low

from kdcli.statistics import Estimate


def number(estimate: Estimate | None, *, signed: bool = False) -> str:
    """Return one number alone with its interval, rounded to what its own interval supports.

    >>> number(Estimate(12.3456, 12.0, 12.7, 5, "seeds", error=0.126))
    '12.35 ± 0.35'
    """
    if estimate is None or math.isnan(estimate.mean):
        return ABSENT
    places = decimals([estimate.mean], [estimate.half_width])
    return with_interval(estimate.mean, estimate.low, estimate.high, places, signed=signed)


ABSENT = "–"


MOST_DECIMALS = 6

_LOPSIDED = 0.025
"""From this part of half an interval between its middle and the mean on, both ends are printed."""


DIGITS = 2


def decimals(values: Iterable[float], halves: Iterable[float | None], digits: int = DIGITS) -> int:
    """Return the decimals at which a column of numbers is printed.

    Args:
        values: the numbers.
        halves: half of each one's interval, None where there is none.
        digits: significant digits of the median interval; without intervals, numbers show two more.

    >>> decimals([0.31234], [0.0123]), decimals([31.234], [None]), decimals([], []), decimals([0.31234], [0.0123], 1)
    (3, 2, 2, 2)
    """
    widths = [half for half in halves if half is not None and math.isfinite(half) and half > 0]
    if widths:
        return min(max(digits - 1 - math.floor(math.log10(median_low(widths)) + 1e-6), 0), MOST_DECIMALS)
    sizes = [abs(value) for value in values if math.isfinite(value) and value != 0]
    return min(max(digits + 1 - math.floor(math.log10(max(sizes))), 0), MOST_DECIMALS) if sizes else 2


def coarser(estimate: Estimate, places: int) -> int:
    """Return the decimals of a number in a column: those of the column, or its own where it is known far worse.

    >>> coarser(Estimate(18767.4, 16915.6, 20822.0, 3, "examples"), 2), coarser(Estimate(3.1, 3.0, 3.2, 3, "seeds"), 3)
    (0, 3)
    """
    own = decimals([estimate.mean], [estimate.half_width])
    return own if own <= places - 2 else places


def plain(value: float, places: int, *, signed: bool = False) -> str:
    """Return a number alone.

    >>> plain(0.02, 3, signed=True)
    '+0.020'
    """
    return f"{value:{'+' if signed else ''},.{places}f}" if math.isfinite(value) else str(value)


def bracketed(low: float | None, high: float | None, places: int, *, signed: bool = False) -> str:
    """Return both ends of an interval; nothing if there is none.

    >>> bracketed(0.203, 0.538, 3, signed=True), bracketed(None, None, 3)
    ('[+0.203, +0.538]', '')
    """
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return ""
    return f"[{plain(low, places, signed=signed)}, {plain(high, places, signed=signed)}]"


def interval(mean: float, low: float | None, high: float | None, places: int, *, signed: bool = False) -> str:
    """Return half an interval, or both its ends if the mean is not its middle; nothing if there is none.

    >>> interval(0.3, 0.25, 0.35, 2), interval(0.341, 0.203, 0.538, 3, signed=True), interval(1.0, None, None, 2)
    ('± 0.05', '[+0.203, +0.538]', '')
    """
    if low is None or high is None or not math.isfinite(mean):
        return ""
    half = (high - low) / 2
    if not math.isfinite(half) or abs(mean - low - half) > _LOPSIDED * half:
        return bracketed(low, high, places, signed=signed)
    return f"± {half:,.{places}f}"


def with_interval(mean: float, low: float | None, high: float | None, places: int, *, signed: bool = False) -> str:
    """Return a number and its interval.

    >>> with_interval(0.31234, 0.3, 0.32468, 3), with_interval(0.02, None, None, 3, signed=True)
    ('0.312 ± 0.012', '+0.020')
    """
    return f"{plain(mean, places, signed=signed)} {interval(mean, low, high, places, signed=signed)}".rstrip()
