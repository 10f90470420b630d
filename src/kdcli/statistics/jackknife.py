"""One value per example for any score: the usual value for a mean, jackknife values for a ratio."""

import math
from collections.abc import Sequence

import numpy as np

from kdcli.errors import InputError
from kdcli.statistics.estimate import Additive, Array, Estimate, t_estimate
from kdcli.statistics.resample import bootstrap_error


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
    """Return the standard error from leave-one-out values; None where it cannot be told."""
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
