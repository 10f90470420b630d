"""How many digits of a number are worth printing: no more than its uncertainty allows."""

import math
from collections.abc import Iterable
from statistics import median_low

MOST_DECIMALS = 6


def decimals(values: Iterable[float], halves: Iterable[float | None]) -> int:
    """Return the decimals at which a column of numbers is printed.

    The median interval shows two digits; without intervals, numbers show four.

    Args:
        values: the numbers.
        halves: half of each one's interval, None where there is none.

    >>> decimals([0.31234], [0.0123]), decimals([31.234], [None]), decimals([], [])
    (3, 2, 2)
    """
    widths = [half for half in halves if half is not None and math.isfinite(half) and half > 0]
    if widths:
        return min(max(1 - math.floor(math.log10(median_low(widths)) + 1e-6), 0), MOST_DECIMALS)
    sizes = [abs(value) for value in values if math.isfinite(value) and value != 0]
    return min(max(3 - math.floor(math.log10(max(sizes))), 0), MOST_DECIMALS) if sizes else 2


def with_half(value: float, half: float | None, places: int, *, signed: bool = False) -> str:
    """Return a number and half its interval.

    >>> with_half(0.31234, 0.0123, 3), with_half(0.02, None, 3, signed=True)
    ('0.312 ± 0.012', '+0.020')
    """
    if not math.isfinite(value):
        return str(value)
    text = f"{value:{'+' if signed else ''},.{places}f}"
    return text if half is None or not math.isfinite(half) else f"{text} ± {half:,.{places}f}"
