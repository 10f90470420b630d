"""Calibration of the next-token probabilities."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from kdcli.errors import InputError
from kdcli.metrics.base import TokenMetric
from kdcli.metrics.score import Array, Better, Score, add_up, mean_and_count, ratio


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
    settings: ClassVar[str] = "top:1|width:equal|norm:l1|agg:token-mean"
    options: ClassVar[dict[str, int]] = {"bins": 10}
    facts: ClassVar[tuple[str, ...]] = ("top1_prob", "top1_correct", "brier", "label_logp")

    def __init__(self, **options: int) -> None:
        super().__init__(**options)
        if self.chosen["bins"] < 1:
            what = f"bins must be at least 1, got {self.chosen['bins']}"
            raise InputError("METRIC-02", what, where="metric ece", fix="bins=10")

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


def bin_sums(confidence: Array, correct: Array, example: NDArray[np.int64], examples: int, bins: int) -> Array:
    """Add up count, confidence and correctness by example and bin.

    Args:
        confidence: largest probability of each token, shape ``[n]``.
        correct: 1 where the top token is the label, shape ``[n]``.
        example: the token's example, shape ``[n]``.
        examples: number of examples.
        bins: number of equal-width bins.

    Returns:
        sums of shape ``[examples, 3 * bins]``, in the order count, confidence, correct of each bin.
    """
    inside = np.clip((confidence * bins).astype(np.int64), 0, bins - 1)
    values = np.stack([np.ones_like(confidence), confidence, correct], axis=-1)
    return add_up(values, example * bins + inside, examples * bins).reshape(examples, 3 * bins)


def calibration_error(sums: Array) -> Array:
    """Return the expected calibration error from sums ``[..., 3 * bins]``; NaN where there are no tokens.

    >>> calibration_error(np.array([1.0, 0.75, 1.0, 1.0, 0.5, 0.0])).item()
    0.375
    """
    count, confidence, correct = np.moveaxis(sums.reshape(*sums.shape[:-1], -1, 3), -1, 0)
    gaps = np.abs(correct - confidence).sum(-1)
    return ratio()(np.stack([gaps, count.sum(-1)], axis=-1))
