"""From a judge's scores of answers and references to ratio, win rate and consistency, with intervals."""

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from kdcli.bounded import NOT_NEGATIVE, PERCENT
from kdcli.metrics.score import Array, Score, ratio
from kdcli.runs.judging.prompt import HIGHEST, LOWEST

NOTHING = np.nan


@dataclass(frozen=True, eq=False)
class Verdicts:
    """What a judge gave.

    Args:
        model: score of each answer, NaN where there is none, ``[examples, answers, orders]``; the
            order 0 shows the answer first, the order 1 shows the reference first.
        reference: score of the reference in the same judgements, the same shape; None if it was not judged.
    """

    model: Array
    reference: Array | None = None

    @property
    def judged(self) -> NDArray[np.bool_]:
        """Which answers were scored in every order, ``[examples, answers]``."""
        known = np.isfinite(self.model)
        return np.asarray((known if self.reference is None else known & np.isfinite(self.reference)).all(-1))


def scores_of(verdicts: Verdicts) -> list[Score]:
    r"""Return the scores of a model that a judge has seen.

    With :math:`m_i` and :math:`r_i` the mean scores of example i's answer and reference over both orders:
    ``judge_score`` is the mean of m, ``judge_ratio`` is :math:`100 \sum_i m_i / \sum_i r_i`, the ratio of
    MiniLLM (arXiv 2306.08543, section 3.1), ``judge_win_rate`` the share of answers with m > r, ties
    half, ``judge_consistency`` the share whose winner (or tie) is the same in both orders, and
    ``judge_first_bonus`` by how much an answer gains on average from standing first.

    Args:
        verdicts: a judge's scores.

    Returns:
        scores whose sums are per example; an example no answer of which was judged counts for nothing.

    >>> found = scores_of(Verdicts(np.array([[[8.0, 6.0]], [[4.0, 4.0]]]), np.array([[[7.0, 7.0]], [[8.0, 8.0]]])))
    >>> {score.name: round(score.value, 2) for score in found}["judge_ratio"]
    73.33
    """
    add = partial(_add_up, judged=verdicts.judged)
    mean = verdicts.model.mean(-1)
    found = [Score("judge_score", add(mean, np.ones_like(mean)), ratio(), "higher", bounds=(LOWEST, HIGHEST))]
    if verdicts.reference is None:
        return found
    reference = verdicts.reference.mean(-1)
    won = 0.5 + 0.5 * np.sign(mean - reference)
    found += [
        Score("judge_ratio", add(mean, reference), ratio(100.0), "higher", bounds=NOT_NEGATIVE),
        Score("judge_win_rate", add(won, np.ones_like(won)), ratio(100.0), "higher", bounds=PERCENT),
    ]
    if verdicts.model.shape[-1] == 2:
        gaps = verdicts.model - verdicts.reference
        same = (np.sign(gaps[..., 0]) == np.sign(gaps[..., 1])).astype(np.float64)
        bonus = (gaps[..., 0] - gaps[..., 1]) / 2
        found += [
            Score("judge_consistency", add(same, np.ones_like(same)), ratio(100.0), "neither", bounds=PERCENT),
            Score("judge_first_bonus", add(bonus, np.ones_like(bonus)), ratio(), "neither"),
        ]
    return found


def _add_up(top: Array, bottom: Array, *, judged: NDArray[np.bool_]) -> Array:
    """Return numerator and denominator of each example, means over its judged answers, ``[examples, 2]``."""
    count = np.maximum(judged.sum(-1, keepdims=True), 1)
    parts = np.stack([np.where(judged, top, 0.0), np.where(judged, bottom, 0.0)], axis=-1)
    return parts.sum(1) / count
