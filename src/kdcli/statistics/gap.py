"""The share of a gap that was closed: a ratio of two differences on the same examples, by Fieller's method."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from kdcli.statistics.bootstrap import counted
from kdcli.statistics.estimate import CONFIDENCE, Additive, Array, Estimate
from kdcli.statistics.paired import value_table
from kdcli.statistics.variance_components import split, split_difference

_DOUBLINGS = 40
_ROUNDING = 1e-14
"""How exactly an end of an interval is found."""


def share_of_gap(
    contender: Sequence[Additive], start: Sequence[Additive], target: Sequence[Additive]
) -> Estimate | None:
    """Return (start - contender) / (start - target), with the interval of Fieller's method.

    The interval holds every share ``r`` for which ``(start - contender) - r * (start - target)``, one number per
    training seed and example, cannot be told from zero at 5 %: by the two-level interval over seeds and examples if
    there are several seeds, else by Student's t over examples.

    Args:
        contender: one score per training seed.
        start: where it started, one score per training seed, or one for all of them.
        target: where the gap ends, likewise.

    Returns:
        the share, 1 where the target was reached, below 0 where the contender moved away from it; None where
        the gap itself is not clear, so that no bounded interval exists, or the scores are of the whole set.

    Reference: Fieller 1954, Some problems in interval estimation, JRSS B 16(2), 175-185.
    """
    seeds = len(contender)
    ends = [list(side) * (seeds if len(side) == 1 else 1) for side in (start, target)]
    if any(one.sums is None for one in (*contender, *ends[0], *ends[1])):
        return None
    which = counted([*contender, *ends[0], *ends[1]])
    ours, first, last = (value_table(side, which) for side in (contender, *ends))
    if ours is None or first is None or last is None or ours.shape[1] < 2:
        return None
    means = [math.fsum(one.value for one in side) / seeds for side in (contender, *ends)]
    moved, gap = first - ours, first - last
    shift, width = means[1] - means[0], means[1] - means[2]

    def beyond(share: float) -> float:
        """How far a share is from what the data allow; at most 0 inside the interval."""
        return abs(shift - share * width) - _half(moved - share * gap)

    if not abs(width) > _half(gap):
        return None
    share = shift / width
    low, high = (_edge(beyond, share, sign) for sign in (-1.0, 1.0))
    unit = "seeds and examples" if seeds > 1 else "examples"
    return Estimate(share, low, high, seeds if seeds > 1 else int(ours.shape[1]), unit)


def _half(table: Array) -> float:
    """Return half the 95 % interval of the mean of a table of differences, ``[seeds, examples]``."""
    parts = split_difference(table) if len(table) > 1 else split(table)
    return float(parts.half_width(1.0 - CONFIDENCE))


def _edge(beyond: Callable[[float], float], inside: float, sign: float) -> float | None:
    """Return where a function that is negative inside crosses zero, to one side; None where it never does."""
    from scipy.optimize import brentq

    step = 0.01
    for _ in range(_DOUBLINGS):
        if beyond(inside + sign * step) > 0.0:
            break
        step *= 2.0
    else:
        return None
    near = 0.0 if step == 0.01 else step / 2.0
    found: Any = brentq(lambda apart: beyond(inside + sign * apart), near, step, xtol=_ROUNDING)
    return inside + sign * float(found)
