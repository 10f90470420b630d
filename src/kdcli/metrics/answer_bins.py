"""Calibration of answers by class, and in bins of equal mass."""

from functools import partial
from typing import ClassVar, Literal

import numpy as np

from kdcli.bounded import SHARE, Bounds
from kdcli.metrics.bins import bin_sums, mean_calibration_error
from kdcli.metrics.choices import ChoiceMetric, ChoiceTable
from kdcli.metrics.equal_mass import equal_mass_error
from kdcli.metrics.score import Array, Better, Redraw, Score, redrawn
from kdcli.metrics.signature import Option


class AnswerBins(ChoiceMetric):
    """Expected calibration error of answers with other bins.

    ``answer_ece_classwise`` takes each choice's own probability, not the largest: the mean over classes
    of the equal-width error of "the answer is this class" (static calibration error).
    ``answer_ece_mass`` is the error of the likeliest choice over bins that hold equally many rows;
    ``answer_ace`` is the mean over classes with such bins (adaptive calibration error; both Nixon et
    al. 2019). A class is a label where all rows have the same choices, else a place in the row.
    Equal-mass bins move with the rows, so their standard error is a bootstrap's over rows.
    ``compute`` takes one score per choice as predictions and the right one's place as references.

    Args:
        bins: number of bins.
        choice_score: "sum" of the log-probabilities of a choice's tokens, or their "mean".

    >>> AnswerBins().compute(predictions=[[0.0, 0.0], [0.0, 0.0]], references=[0, 0])["answer_ece_classwise"]
    0.5
    """

    name: ClassVar[str] = "answer_bins"
    description: ClassVar[str] = "ECE of answers: classwise, equal-mass, and adaptive"
    scores: ClassVar[dict[str, Better]] = {
        "answer_ece_classwise": "lower",
        "answer_ece_mass": "lower",
        "answer_ace": "lower",
    }
    bounds: ClassVar[dict[str, Bounds]] = {"answer_ece_classwise": SHARE, "answer_ece_mass": SHARE, "answer_ace": SHARE}
    settings: ClassVar[str] = "norm:choices|end:left-out|norm:l1"
    options: ClassVar[dict[str, Option]] = {"bins": 10, "choice_score": "sum"}
    eats: ClassVar[Literal["texts", "tokens", "own", "choices"]] = "choices"

    def measure(self, table: ChoiceTable) -> list[Score]:
        """Bin every class's probability, and the largest one by rank."""
        bins, rows, facts = self.chosen["bins"], len(table.right), table.facts
        row, probability, outcome = np.arange(rows), *class_outcomes(table)
        apart = [bin_sums(p, o, row, rows, bins) for p, o in zip(probability.T, outcome.T, strict=True)]
        top = equal_mass_error(facts["top1_prob"], facts["top1_correct"], row, rows, bins)
        errors = [equal_mass_error(p, o, row, rows, bins) for p, o in zip(probability.T, outcome.T, strict=True)]
        classwise = partial(mean_calibration_error, bins=bins)
        note = () if table.labels else ("answer_bins: rows differ in their choices; a class is a place in the row",)
        return [
            Score("answer_ece_classwise", np.concatenate(apart, axis=-1), classwise, "lower", notes=note),
            redrawn("answer_ece_mass", top),
            redrawn("answer_ace", Redraw(lambda drawn: np.mean([one.value(drawn) for one in errors], axis=0), rows)),
        ]


def class_outcomes(table: ChoiceTable) -> tuple[Array, Array]:
    """Return each choice's probability and whether it is the right one, both ``[rows, choices]``."""
    return np.exp(table.logp), np.eye(table.scores.shape[1])[table.right]
