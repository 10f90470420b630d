"""Intervals of numbers that cannot leave a range, such as a share between 0 and 100 %."""

import math
from typing import Any, TypeAlias

import numpy as np

Bounds: TypeAlias = tuple[float, float]

ANYWHERE: Bounds = (-math.inf, math.inf)
SHARE: Bounds = (0.0, 1.0)
PERCENT: Bounds = (0.0, 100.0)
NOT_NEGATIVE: Bounds = (0.0, math.inf)


def score_interval(mean: Any, half: Any, bounds: Bounds, least: Any = 0.0) -> tuple[Any, Any]:
    """Return the ends of the score interval of a mean within its bounds: Wilson's, from any standard error.

    The true mean t is inside if ``|mean - t| <= half * sqrt(v(t) / v(mean))`` with ``v(t) = (t - low) (high - t)``,
    or ``t - low`` without an upper bound. Far from the bounds, or for a small ``half``, it is ``mean ± half``. Where
    nothing varies ``half`` is 0 and says nothing; then ``least`` decides.

    Args:
        mean: numbers ``[...]``.
        half: half of each one's symmetric interval, ``[...]``.
        bounds: lowest and highest value that the true mean can have; without a lower one, or where a mean lies
            outside, the interval is symmetric.
        least: what stands for ``half**2 / v(mean)`` there: the squared quantile over the number of independent values.

    Returns:
        lower and upper ends, ``[...]``.

    Source: Wilson 1927, Probable inference, the law of succession, and statistical inference.

    >>> [round(float(end), 3) for end in score_interval(0.5, 1.96 * 0.5 / 10**0.5, SHARE)]
    [0.237, 0.763]
    >>> [round(float(end), 3) for end in score_interval(0.0, 0.0, SHARE, least=1.96**2 / 10)]
    [0.0, 0.278]
    >>> score_interval(2.0, 3.0, ANYWHERE)
    (-1.0, 5.0)
    """
    low, high = bounds
    symmetric = mean - half, mean + half
    if low == -math.inf:
        return symmetric
    width = high - low if high < math.inf else 1.0
    place = (np.asarray(mean, dtype=np.float64) - low) / width
    spread = place * (1.0 - place) if high < math.inf else place
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where((half == 0.0) | (spread <= 0.0), least, (half / width) ** 2 / spread)
    shrink = 1.0 + ratio if high < math.inf else 1.0
    middle = (place + ratio / 2) / shrink
    reach = np.sqrt(np.maximum(ratio * spread + ratio**2 / 4, 0.0)) / shrink
    lower = np.where(place == 0.0, low, low + width * np.maximum(middle - reach, 0.0))
    upper = np.where(mean == high, high, np.minimum(low + width * (middle + reach), high))
    outside = (mean < low) | (mean > high)
    return np.where(outside, symmetric[0], lower), np.where(outside, symmetric[1], upper)
