"""Means and paired differences over training seeds alone, by Student's t: three numbers carry no bootstrap."""

import math
from collections.abc import Mapping, Sequence

from kdcli.bounded import ANYWHERE, Bounds
from kdcli.statistics.estimate import Estimate, t_estimate


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
