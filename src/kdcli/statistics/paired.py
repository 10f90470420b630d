"""Means and paired differences of scores with several training seeds on the same examples."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from kdcli.statistics.bootstrap import Pairs, answer_noise, bca_interval, counted, example_values, permutation_p
from kdcli.statistics.estimate import LEVEL, POWER, Additive, Array, Estimate, over_seeds, seeds_estimate, t_estimate
from kdcli.statistics.variance_components import Parts, split_difference, two_level

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


# What a design can find: the smallest true difference that its test detects in most repeats.


RANGE = 0.9
"""How sure the range is to hold the difference that would be solved from the true variance."""

_MANY = 10**9
_HAIR = 1e-9
_SEED_NODES, _EXAMPLE_NODES, _HALVINGS = 100, 8, 40


@dataclass(frozen=True)
class Detectable:
    """The smallest true difference that is found with a given power.

    Args:
        size: from the variance that is as likely too small as too large.
        low: from the smallest variance that goes with what was seen.
        high: from the largest.
    """

    size: float
    low: float
    high: float


def smallest_detectable_difference(
    pairs: Sequence[tuple[Sequence[Additive], Sequence[Additive]]], tests: int = 1, power: float = POWER
) -> Detectable | None:
    """Return the true difference that this design finds with this power at the strictest level of Holm's rule.

    The variance is the mean of the contenders', which share the baseline; the range, 90 %, is that of a variance
    known from so few seeds and examples.

    Args:
        pairs: for each contender its scores and the baseline's, seed by seed; those with the most seeds are used.
        tests: how many contenders share the 5 %.
        power: probability of finding it.

    Returns:
        differences in units of the score; None without a variance.
    """
    most = max((len(ours) for ours, _ in pairs), default=0)
    found = [parts for ours, theirs in pairs if len(ours) == most > 0 and (parts := _parts(ours, theirs)) is not None]
    shapes = {parts.shape for parts in found}
    if not found or len(shapes) > 1:
        return None
    mean = _of(found[0].shape, lambda name: np.asarray(np.mean([getattr(one, name) for one in found], axis=0)))
    if not float(mean.total + mean.fixed) > 0.0:
        return None
    return of_studies(mean, len(found), LEVEL / max(tests, 1), power)


def of_studies(parts: Parts, contenders: int, level: float, power: float = POWER) -> Detectable:
    """Return the difference that a test at this level finds with this power, from estimated variances.

    Args:
        parts: mean of the contenders' estimated variances.
        contenders: how many.
        level: of the test, two-sided.
        power: probability of finding it.
    """
    sizes = detectable(_spread(parts, contenders), level, power).tolist()
    return Detectable(sizes[0], min(sizes), max(sizes))


def detectable(parts: Parts, level: float, power: float = POWER) -> Array:
    """Return the difference that a test at this level finds with this power, if these are the true variances.

    Args:
        parts: true variances ``[...]``; ``fixed`` as the test knows it.
        level: of the test, two-sided.
        power: probability of finding it.
    """
    from scipy.special import ndtr

    flat = _of(parts.shape, lambda name: np.ravel(getattr(parts, name)))
    low, high = np.zeros_like(flat.total), 8.0 * flat.half_width(level) + 8.0 * np.sqrt(flat.total)
    drawn = _drawn(flat)
    reach = drawn.half_width(level)
    error = np.maximum(np.sqrt(flat.total), _HAIR * high)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        found = ndtr((middle - reach) / error) + ndtr((-middle - reach) / error)
        enough = found.mean(0) >= power
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return ((low + high) / 2).reshape(np.shape(parts.total))


def _of(shape: tuple[int, int], variance: Callable[[str], Array]) -> Parts:
    return Parts(variance("seeds"), variance("examples"), variance("rest"), variance("fixed"), shape)


def _parts(ours: Sequence[Additive], theirs: Sequence[Additive]) -> Parts | None:
    """Return the variance of one contender's difference; between seeds alone for a score of the whole set."""
    table = difference_table(ours, theirs)
    if table is not None:
        low, high = ours[0].bounds
        return split_difference(table, high - low) if table.shape[1] > 1 else None
    values = np.array([one.value - other.value for one, other in zip(ours, theirs, strict=True)])
    if len(values) < 2 or not np.isfinite(values).all():
        return None
    nothing = np.zeros(())
    return Parts(np.asarray(values.var(ddof=1) / len(values)), nothing, nothing, nothing, (len(values), _MANY))


def _drawn(parts: Parts) -> Parts:
    """Return the variances as studies estimate them, at the middles of equally likely draws, ``[draws, ...]``."""
    seeds, examples = (size - 1 for size in parts.shape)
    of_seeds = _chi_square(seeds, _SEED_NODES) if seeds else np.ones(1)
    of_examples = _chi_square(examples, _EXAMPLE_NODES)
    one, other = (each.reshape(-1, 1) for each in np.meshgrid(of_seeds, of_examples))
    return replace(
        parts, seeds=parts.seeds * one, examples=parts.examples * other, rest=parts.rest * other,
        fixed=parts.fixed * other,
    )  # fmt: skip


def _chi_square(freedom: int, nodes: int) -> Array:
    """Return quantiles of chi square over its degrees of freedom, ``[nodes]``."""
    from scipy.special import chdtri

    return np.asarray(chdtri(freedom, 1.0 - (np.arange(nodes) + 0.5) / nodes) / freedom)


def _spread(parts: Parts, contenders: int) -> Parts:
    """Return middle, smallest and largest variances that go with what was seen, ``[3]``.

    The variance that m contenders share has the degrees of freedom of a mean of m chi squares which correlate
    by 1/4, since the differences correlate by 1/2 through the baseline.
    """
    from scipy.special import chdtri

    shared = contenders / (1.0 + (contenders - 1) / 4.0)
    tails = np.array([0.5, (1.0 - RANGE) / 2, (1.0 + RANGE) / 2])
    seeds, examples = (max(size - 1, 0) * shared for size in parts.shape)
    by_seed = seeds / chdtri(seeds, tails) if seeds else np.ones(3)
    by_example = examples / chdtri(examples, tails)
    fixed = parts.fixed * by_example
    return Parts(
        seeds=np.maximum(parts.seeds * by_seed, parts.rest * [1, 0, 1]) if seeds else np.zeros(3),
        examples=np.maximum(parts.examples + fixed - parts.fixed, 0.0),
        rest=np.full(3, parts.rest),
        fixed=fixed,
        shape=parts.shape,
    )
