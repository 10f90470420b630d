"""The Brier score of answers taken apart."""

from typing import ClassVar, Literal

import numpy as np

from kdcli.bounded import NOT_NEGATIVE, SHARE, Bounds
from kdcli.metrics.answer_bins import class_outcomes
from kdcli.metrics.brier import brier_scores, brier_sums
from kdcli.metrics.choices import ChoiceMetric, ChoiceTable
from kdcli.metrics.score import Better, Score
from kdcli.metrics.signature import Option


class AnswerBrierParts(ChoiceMetric):
    """The Brier score of answers over all choices, taken apart exactly.

    ``answer_brier = reliability - resolution + uncertainty + within_variance - within_covariance``. Each
    choice is an event of its own with equal-width bins of its probability; the terms are those of
    ``brier_parts`` (Stephenson, Coelho and Jolliffe 2008), summed over the choices. ``compute`` takes one
    score per choice as predictions and the right one's place as references.

    Args:
        bins: number of bins.
        choice_score: "sum" of the log-probabilities of a choice's tokens, or their "mean".

    >>> scores = AnswerBrierParts().compute(predictions=[[0.0, 0.0], [0.0, 0.0]], references=[0, 1])
    >>> scores["answer_brier_reliability"], scores["answer_brier_uncertainty"]
    (0.0, 0.5)
    """

    name: ClassVar[str] = "answer_brier_parts"
    description: ClassVar[str] = "Brier score of answers: reliability - resolution + uncertainty + within bins"
    scores: ClassVar[dict[str, Better]] = {
        "answer_brier_reliability": "lower",
        "answer_brier_resolution": "higher",
        "answer_brier_uncertainty": "neither",
        "answer_brier_within_variance": "neither",
        "answer_brier_within_covariance": "neither",
    }
    bounds: ClassVar[dict[str, Bounds]] = {
        "answer_brier_reliability": (0.0, 2.0),
        "answer_brier_resolution": SHARE,
        "answer_brier_uncertainty": SHARE,
        "answer_brier_within_variance": NOT_NEGATIVE,
    }
    settings: ClassVar[str] = "norm:choices|end:left-out|width:equal|agg:mean"
    options: ClassVar[dict[str, Option]] = {"bins": 10, "choice_score": "sum"}
    eats: ClassVar[Literal["texts", "tokens", "own", "choices"]] = "choices"

    def measure(self, table: ChoiceTable) -> list[Score]:
        """Add up five numbers per row, choice and bin."""
        probability, outcome = class_outcomes(table)
        rows, choices = probability.shape
        row, event = np.divmod(np.arange(rows * choices), choices)
        sums = brier_sums(
            probability.ravel(), outcome.ravel(), row, rows, bins=self.chosen["bins"], event=event, events=choices
        )
        return brier_scores("answer_brier", sums, self.chosen["bins"])[1:]  # the whole is a score of ``answers``
