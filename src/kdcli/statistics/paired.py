"""Means and paired differences of scores measured with several training seeds on the same examples."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from kdcli.statistics.estimate import Additive, Array, Estimate, t_estimate
from kdcli.statistics.jackknife import answer_noise, counted, example_values
from kdcli.statistics.over_seeds import over_seeds, seeds_estimate
from kdcli.statistics.resample import Pairs, bca_interval, permutation_p
from kdcli.statistics.two_level import split_difference, two_level

FEW = 20
"""Examples that carry a difference, below which quantiles of bootstrap draws are too coarse."""


def over_both(scores: Sequence[Additive]) -> Estimate:
    """Estimate a score over training seeds and examples, both drawn at random.

    Args:
        scores: one per training seed, at least two, measured on the same examples.

    Returns:
        the mean over seeds; over seeds alone for a score of the whole set, or one that is infinite.
    """
    values = [score.value for score in scores]
    table = value_table(scores, counted(scores)) if _additive(scores) else None
    bounds = scores[0].bounds
    return over_seeds(values, bounds) if table is None else two_level(_mean(values), table, bounds=bounds)


def difference_over_both(contender: Sequence[Additive], baseline: Sequence[Additive]) -> Estimate:
    """Estimate contender minus baseline, paired by seed and example: what other seeds and examples would give.

    Args:
        contender: one score per training seed, at least two.
        baseline: the same seeds, in the same order.
    """
    values = [ours.value - theirs.value for ours, theirs in zip(contender, baseline, strict=True)]
    table = difference_table(contender, baseline)
    if table is None:
        return seeds_estimate(values, contender[0].bounds, difference=True)
    return two_level(_mean(values), table, difference=True, bounds=contender[0].bounds)


def difference_over_examples(
    contender: Sequence[Additive], baseline: Sequence[Additive], *, interval: bool = True
) -> Estimate:
    """Estimate contender minus baseline for these trained models, paired by example.

    Args:
        contender: one score per training seed.
        baseline: the same seeds, in the same order.
        interval: whether the BCa interval is wanted; it takes longer than the rest together.

    Returns:
        the mean difference with its BCa interval and permutation p; bare for scores of the whole set. Where few
        examples carry the difference, the interval is not shorter than Student's with two more of their size.

    Raises:
        InputError: the two were measured on different numbers of examples.
    """
    mean = _mean([ours.value - theirs.value for ours, theirs in zip(contender, baseline, strict=True)])
    table = difference_table(contender, baseline)
    if table is None:
        return Estimate(mean, None, None, 1, "none")
    if table.shape[1] < 2:
        return Estimate(mean, None, None, table.shape[1], "examples")
    means, (low, high) = table.mean(0), contender[0].bounds
    error = math.sqrt(float(split_difference(means[None], high - low).fixed))
    found = t_estimate(mean, error, len(means), "examples", difference=True, bounds=(low, high))
    pairs = Pairs(contender, baseline, counted([*contender, *baseline]))
    found = replace(found, p_value=permutation_p(pairs))
    ends = bca_interval(pairs) if interval and np.ptp(means) > 0 else None
    if ends is None:
        return found
    if found.low is not None and found.high is not None and _carriers(means) < FEW:
        ends = min(ends[0], found.low), max(ends[1], found.high)
    return replace(found, low=ends[0], high=ends[1])


def difference_table(contender: Sequence[Additive], baseline: Sequence[Additive]) -> Array | None:
    """Return the paired differences of each seed and example, ``[seeds, examples]``; None if there are none."""
    if not _additive([*contender, *baseline]):
        return None
    which = counted([*contender, *baseline])
    ours, theirs = value_table(contender, which), value_table(baseline, which)
    return None if ours is None or theirs is None else ours - theirs


def value_table(scores: Sequence[Additive], which: np.ndarray) -> Array | None:
    """Return one value for each seed and example that counts, ``[seeds, count]``; None if there are none."""
    rows = [example_values(score, which) for score in scores]
    found = [row for row in rows if row is not None]
    return np.stack(found) if len(found) == len(rows) else None


def sampling_noise(scores: Sequence[Additive], answers: Sequence[Array | None]) -> float | None:
    """Return the variance that one cell owes to the sampling of answers, averaged over training seeds.

    Args:
        scores: one per training seed.
        answers: for each, statistics by answer, ``[examples, answers, k]``; None where there are none.
    """
    which = counted(scores)
    noises = [answer_noise(score, several, which) for score, several in zip(scores, answers, strict=True)]
    known = [noise for noise in noises if noise is not None]
    return _mean(known) if known and len(known) == len(noises) else None


def _carriers(values: Array) -> float:
    """Return how many of the examples carry a mean difference: k, if k of them differ equally and the rest do not."""
    squares = np.square(values)
    return float(squares.sum() ** 2 / np.square(squares).sum()) if squares.any() else 0.0


def _additive(scores: Sequence[Additive]) -> bool:
    return all(score.sums is not None for score in scores)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
