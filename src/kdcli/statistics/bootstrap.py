"""Paired resampling over examples: BCa bootstrap intervals and permutation p-values.

Both hold the trained models fixed. Several seeds of one objective are resampled together: an
example is drawn, or swapped between contender and baseline, in all of them at once.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdcli.errors import InputError
from kdcli.statistics.estimate import CONFIDENCE, Additive, Array, Estimate, Redrawn, t_estimate

RESAMPLES = 9999
REDRAWS = 1999
_SEED = 20_260_101
_EXACT = 13
"""Up to this many examples every swap is tried, not a sample of them."""

_BLOCK = 2**21


@dataclass(frozen=True)
class Pairs:
    """Two lists of scores, one entry per training seed, measured on the same examples.

    Args:
        contender: scores of the one side.
        baseline: scores of the other, seed by seed.
        which: the examples that count.
    """

    contender: Sequence[Additive]
    baseline: Sequence[Additive]
    which: np.ndarray

    @property
    def sides(self) -> tuple[Array, Array]:
        """Statistics of both sides, ``[examples, seeds * k]``."""
        return self._columns(self.contender), self._columns(self.baseline)

    def difference(self, contender: Array, baseline: Array) -> Array:
        """Return the difference of summed statistics ``[..., seeds * k]``, averaged over seeds, ``[...]``."""
        seeds = len(self.contender)
        ours, theirs = (side.reshape(*side.shape[:-1], seeds, -1) for side in (contender, baseline))
        each = [
            one.finish(ours[..., seed, :]) - other.finish(theirs[..., seed, :])
            for seed, (one, other) in enumerate(zip(self.contender, self.baseline, strict=True))
        ]
        return np.asarray(np.mean(each, axis=0))

    def _columns(self, scores: Sequence[Additive]) -> Array:
        return np.concatenate([np.asarray(score.sums)[self.which] for score in scores], axis=1)


def bca_interval(pairs: Pairs) -> tuple[float, float] | None:
    """Return the 95 % interval of the difference, by scipy's BCa bootstrap over examples.

    Returns:
        both ends; None where the bootstrap's values do not vary.
    """
    ours, theirs = pairs.sides
    width = ours.shape[1]
    both = np.concatenate([ours, theirs], axis=1)

    def value(drawn: Array) -> Array:
        sums = drawn @ both
        return pairs.difference(sums[:, :width], sums[:, width:])

    return _bca(value, len(ours), RESAMPLES)


def bootstrap_error(redraw: Redrawn) -> float | None:
    """Return the standard error of a score of the whole set, by scipy's bootstrap over examples.

    The scores that need it are gaps, never negative, and a draw with repeats opens gaps of its own: most draws lie
    above the score itself. Intervals made of the draws' quantiles, BCa among them, may then miss it.

    Args:
        redraw: what the score is on other draws of the examples; a costly function, so fewer draws are made.

    Returns:
        the standard error; None where the bootstrap's values do not vary, or there are fewer than two examples.

    Reference: Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 6.2.
    """
    if redraw.examples < 2:
        return None
    error = float(_bootstrap(redraw.value, redraw.examples, REDRAWS, "percentile").standard_error)
    return error if np.isfinite(error) and error > 0.0 else None


def _bca(value: Callable[[Array], Array], count: int, resamples: int) -> tuple[float, float] | None:
    """Return the BCa interval of a value of how often each example was drawn, ``[draws, examples]``."""
    found = _bootstrap(value, count, resamples, "BCa").confidence_interval
    ends = float(found.low), float(found.high)
    return ends if np.isfinite(ends).all() else None


def _bootstrap(value: Callable[[Array], Array], count: int, resamples: int, method: str) -> Any:
    """Return scipy's bootstrap of a value of how often each example was drawn, ``[draws, examples]``."""
    from scipy.stats import bootstrap  # the only user of a module that takes half a second to import

    def statistic(index: Any, axis: int = -1) -> Array:
        drawn = np.moveaxis(np.asarray(index), axis, -1)
        return value(_counts(drawn.reshape(-1, drawn.shape[-1]), count)).reshape(drawn.shape[:-1])

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return bootstrap(
            (np.arange(count),), statistic, n_resamples=resamples, confidence_level=CONFIDENCE,
            method=method, vectorized=True, batch=max(1, _BLOCK // count), rng=np.random.default_rng(_SEED),
        )  # fmt: skip


def permutation_p(pairs: Pairs) -> float:
    """Return the share of swaps of examples between the sides that differ as much as what was seen.

    Two-sided. All swaps are tried for few examples; else random ones, among which what was seen counts.
    """
    ours, theirs = pairs.sides
    seen = abs(float(pairs.difference(ours.sum(0), theirs.sum(0))))
    change = theirs - ours
    if not change.any():
        return 1.0
    extreme = tried = 0
    for swaps in _swaps(len(ours)):
        moved = swaps @ change
        values = np.abs(pairs.difference(ours.sum(0) + moved, theirs.sum(0) - moved))
        extreme += int((values >= seen * (1 - 1e-9)).sum())
        tried += len(swaps)
    return extreme / tried if len(ours) <= _EXACT else (extreme + 1) / (tried + 1)


def _swaps(count: int) -> Iterator[Array]:
    """Yield which examples are swapped, ``[swaps, examples]`` of 0 and 1."""
    if count <= _EXACT:
        yield ((np.arange(2**count)[:, None] >> np.arange(count)) & 1).astype(np.float64)
        return
    draw, left, rows = np.random.default_rng(_SEED), RESAMPLES, max(1, _BLOCK // count)
    while left > 0:
        yield draw.integers(0, 2, (min(rows, left), count), dtype=np.uint8).astype(np.float64)
        left -= rows


def _counts(drawn: np.ndarray, count: int) -> Array:
    """How often each example was drawn, ``[samples, examples]``."""
    flat = drawn + count * np.arange(len(drawn))[:, None]
    return np.bincount(flat.ravel(), minlength=count * len(drawn)).reshape(len(drawn), count).astype(np.float64)


# One value per example for any score: the usual value for a mean, jackknife values for a ratio.


def over_examples(score: Additive) -> Estimate:
    """Estimate a score with its uncertainty from the choice of held-out examples.

    Examples without any statistics (no tokens) are not counted. A score of the whole set takes its
    standard error from a bootstrap where it can be taken of other draws of the examples; else it has no interval.
    """
    if score.sums is None:
        return _over_draws(score)
    sums = score.sums[counted([score])]
    error = jackknife_error(_left_out(score, sums))
    return t_estimate(score.value, error, len(sums), "examples", bounds=score.bounds)


def _over_draws(score: Additive) -> Estimate:
    error = bootstrap_error(score.redraw) if score.redraw is not None else None
    if score.redraw is None or error is None:
        return Estimate(score.value, None, None, 1, "none")
    return t_estimate(score.value, error, score.redraw.examples, "examples", bounds=score.bounds)


def counted(scores: Sequence[Additive]) -> np.ndarray:
    """Return which examples any of these scores counts, ``[examples]``.

    Raises:
        InputError: they were measured on different numbers of examples.
    """
    sums = [score.sums for score in scores if score.sums is not None]
    if len({len(one) for one in sums}) > 1:
        other = next(one for one in sums if len(one) != len(sums[0]))
        what = f"{len(sums[0])} examples against {len(other)}"
        raise InputError("STAT-01", what, where="paired difference", fix="score both on the same examples")
    return np.any([np.any(one != 0.0, axis=-1) for one in sums], axis=0)


def example_values(score: Additive, which: np.ndarray) -> Array | None:
    """Return one value per example whose mean is the score, or nearly so for a ratio.

    Args:
        score: additive statistics.
        which: the examples that count, ``[examples]``.

    Returns:
        ``[count]``; None for a score of the whole set, or where one example makes it infinite.
    """
    if score.sums is None:
        return None
    sums = score.sums[which]
    values = len(sums) * score.value - (len(sums) - 1) * _left_out(score, sums)
    return values if len(sums) > 1 and np.isfinite(values).all() else None


def answer_noise(score: Additive, answers: Array | None, which: np.ndarray) -> float | None:
    """Return the variance that a cell's value owes to the sampling of answers, averaged over the examples.

    Args:
        score: additive statistics.
        answers: the statistics of each example had every answer been this one, ``[examples, answers, k]``.
        which: the examples that count.

    Returns:
        variance of the mean of an example's answers; None where fewer than two were sampled.
    """
    if answers is None or score.sums is None or answers.shape[1] < 2:
        return None
    several, whole = answers[which], _total(score.sums[which])
    values = len(several) * score.value - (len(several) - 1) * np.asarray(score.finish(whole - several))
    noise = float(values.var(axis=1, ddof=1).mean() / answers.shape[1])
    return noise if math.isfinite(noise) else None


def jackknife_error(left_out: Array) -> float | None:
    """Return the standard error from leave-one-out values; None where it is not determined."""
    count = len(left_out)
    if count < 2 or not np.isfinite(left_out).all():
        return None
    mean = math.fsum(left_out) / count
    return math.sqrt((count - 1) / count * math.fsum((left_out - mean) ** 2))


def _left_out(score: Additive, sums: Array) -> Array:
    """The score without each example in turn, ``[examples]``."""
    with np.errstate(invalid="ignore"):
        return np.asarray(score.finish(_total(sums) - sums), dtype=np.float64)


def _total(sums: Array) -> Array:
    return np.array([math.fsum(column) for column in sums.T])
