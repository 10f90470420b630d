"""Calibration of the next-token probabilities."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from kdcli.bounded import NOT_NEGATIVE, SHARE, Bounds
from kdcli.metrics.base import TokenMetric
from kdcli.metrics.bins import bin_sums, calibration_error, check_bins
from kdcli.metrics.curve import Curve
from kdcli.metrics.reliability import equal_mass_series, equal_width_series, reliability_curve
from kdcli.metrics.score import Array, Better, Score, mean_and_count, ratio


class Calibration(TokenMetric):
    """Expected calibration error of the top token, with Brier score and negative log-likelihood.

    ``ece = sum_k |B_k|/n |accuracy_k - confidence_k|`` over equal-width bins of the largest
    probability; bin k holds ``k/bins <= confidence < (k+1)/bins``, the last one also 1. Three
    numbers per bin are kept, never the samples. ``brier`` is the mean over tokens of
    ``sum_v (q_v - 1[v = y])^2``. Confidence is in the model's own next token, not in an answer.
    ``compute`` takes logits ``[n, v]`` as predictions and token ids ``[n]`` as references.

    Args:
        bins: number of bins.

    >>> Calibration().compute(predictions=[[0.0, 0.0], [0.0, 0.0]], references=[0, 1])["ece"]
    0.0
    """

    name: ClassVar[str] = "ece"
    description: ClassVar[str] = "gap between confidence in the top token and its accuracy"
    scores: ClassVar[dict[str, Better]] = {"ece": "lower", "brier": "lower", "nll": "lower"}
    bounds: ClassVar[dict[str, Bounds]] = {"ece": SHARE, "brier": (0.0, 2.0), "nll": NOT_NEGATIVE}
    settings: ClassVar[str] = "top:1|width:equal|norm:l1|agg:token-mean"
    options: ClassVar[dict[str, int]] = {"bins": 10}
    facts: ClassVar[tuple[str, ...]] = ("top1_prob", "top1_correct", "brier", "label_logp")

    def __init__(self, **options: int) -> None:
        super().__init__(**options)
        check_bins(self.chosen["bins"], self.name)

    def measure(self, facts: Mapping[str, Array], example: NDArray[np.int64], examples: int) -> list[Score]:
        """Add up count, confidence and correctness of each bin, and the two proper scores."""
        bins = bin_sums(facts["top1_prob"], facts["top1_correct"], example, examples, self.chosen["bins"])
        brier = mean_and_count(facts["brier"], example, examples)
        nll = mean_and_count(-facts["label_logp"], example, examples)
        return [
            Score("ece", bins, calibration_error, "lower"),
            Score("brier", brier, ratio(), "lower"),
            Score("nll", nll, ratio(), "lower"),
        ]

    def curves(self, facts: Mapping[str, Array], example: NDArray[np.int64], examples: int) -> list[Curve]:
        """Return the reliability diagram of the tokens, in bins of equal width and of equal mass."""
        bins, confidence, correct = self.chosen["bins"], facts["top1_prob"], facts["top1_correct"]
        sums = bin_sums(confidence, correct, example, examples, bins)
        title = f"Next-token calibration on references, ECE {float(calibration_error(sums.sum(0))):.3f}"
        parts = (
            equal_width_series("equal width", sums),
            equal_mass_series("equal mass", confidence, correct, example, examples, bins),
        )
        return [reliability_curve("reliability_tokens", title, parts)]
