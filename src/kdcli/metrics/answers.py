"""Accuracy and calibration of answers among given choices."""

from typing import ClassVar, Literal

import numpy as np

from kdcli.bounded import NOT_NEGATIVE, PERCENT, SHARE, Bounds
from kdcli.metrics.bins import bin_sums, calibration_error, largest_gap
from kdcli.metrics.choices import ChoiceMetric, ChoiceTable
from kdcli.metrics.curve import Curve
from kdcli.metrics.reliability import equal_mass_series, equal_width_series, reliability_curve
from kdcli.metrics.score import Better, Score, mean_and_count, ratio
from kdcli.metrics.signature import Option


class Answers(ChoiceMetric):
    """Is the likeliest choice right, and as often as the model says?

    Each choice is scored by the log-probability of its tokens after the prompt, the end token left out;
    a softmax over the row's choices gives its probability, as MiniLLM renormalises the probabilities of
    the label words. ``accuracy`` is the share of rows whose likeliest choice is right, times 100.
    ``answer_ece = sum_k |B_k|/n |accuracy_k - confidence_k|`` over equal-width bins of the likeliest
    choice's probability, ``answer_mce`` the largest of those gaps, ``answer_brier`` the mean of
    ``sum_c (q_c - 1[c = right])^2``, ``answer_nll`` the mean of ``-log q_right``, in nats. Chance is
    no flaw of calibration: a model that gives each of two choices 0.5 has an ECE of 0.
    ``compute`` takes one score per choice as predictions and the right one's place as references.

    Args:
        bins: number of bins.
        choice_score: "sum" of the log-probabilities of a choice's tokens, or their "mean".

    >>> scores = Answers().compute(predictions=[[0.0, 0.0], [0.0, 0.0]], references=[0, 1])
    >>> scores["accuracy"], scores["answer_ece"]
    (50.0, 0.0)
    """

    name: ClassVar[str] = "answers"
    description: ClassVar[str] = "accuracy, ECE, MCE, Brier score and NLL of the likeliest of given choices"
    scores: ClassVar[dict[str, Better]] = {
        "accuracy": "higher",
        "answer_ece": "lower",
        "answer_mce": "lower",
        "answer_brier": "lower",
        "answer_nll": "lower",
    }
    bounds: ClassVar[dict[str, Bounds]] = {
        "accuracy": PERCENT,
        "answer_ece": SHARE,
        "answer_mce": SHARE,
        "answer_brier": (0.0, 2.0),
        "answer_nll": NOT_NEGATIVE,
    }
    settings: ClassVar[str] = "norm:choices|end:left-out|width:equal|agg:mean"
    options: ClassVar[dict[str, Option]] = {"bins": 10, "choice_score": "sum"}
    eats: ClassVar[Literal["texts", "tokens", "own", "choices"]] = "choices"

    def measure(self, table: ChoiceTable) -> list[Score]:
        """Keep what adds up for each row."""
        facts, row, rows = table.facts, np.arange(len(table.right)), len(table.right)
        bins = bin_sums(facts["top1_prob"], facts["top1_correct"], row, rows, self.chosen["bins"])
        return [
            Score("accuracy", mean_and_count(facts["top1_correct"], row, rows), ratio(100.0), "higher"),
            Score("answer_ece", bins, calibration_error, "lower", notes=_notes(table)),
            Score("answer_mce", bins, largest_gap, "lower"),
            Score("answer_brier", mean_and_count(facts["brier"], row, rows), ratio(), "lower"),
            Score("answer_nll", mean_and_count(-facts["label_logp"], row, rows), ratio(), "lower"),
        ]

    def curves(self, table: ChoiceTable) -> list[Curve]:
        """Return the reliability diagram of the answers, in bins of equal width and of equal mass."""
        facts, row, rows = table.facts, np.arange(len(table.right)), len(table.right)
        confidence, correct, bins = facts["top1_prob"], facts["top1_correct"], self.chosen["bins"]
        sums = bin_sums(confidence, correct, row, rows, bins)
        title = f"Answers among choices, ECE {float(calibration_error(sums.sum(0))):.3f}"
        parts = (
            equal_width_series("equal width", sums),
            equal_mass_series("equal mass", confidence, correct, row, rows, bins),
        )
        return [reliability_curve("reliability_answers", title, parts)]


def _notes(table: ChoiceTable) -> tuple[str, ...]:
    """Say what makes the numbers easy to misread."""
    if len(np.unique(table.right)) > 1 or not table.labels:
        return ()
    return ("answers: the right answer is the same in every row; a model that always says it scores 100",)
