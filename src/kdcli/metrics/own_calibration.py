"""Calibration along the student's own answers, with the teacher for a judge."""

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import numpy as np

from kdcli.bounded import NOT_NEGATIVE, SHARE, Bounds
from kdcli.metrics.band import banded
from kdcli.metrics.bins import bin_sums, calibration_error, check_bins
from kdcli.metrics.curve import Curve, Series
from kdcli.metrics.own import OwnFacts, OwnMetric, Sampler
from kdcli.metrics.reliability import reliability_curve
from kdcli.metrics.score import Array, Better, Score, ratio
from kdcli.metrics.signature import Option


class OwnCalibration(OwnMetric):
    """Expected calibration error of the top token on the student's own answers, with Brier score and NLL.

    A sampled token is no label: a model is right about its own samples as often as it says. So the label
    is what the teacher p would say next, in expectation: with x the student's likeliest token,
    ``own_ece = sum_k |B_k|/n |mean p(x) - mean q(x)|`` over equal-width bins of ``q(x)``,
    ``own_brier = mean sum_v q_v (q_v - 2 p_v) + 1`` and ``own_nll = mean -sum_v p_v log q_v``, in nats. They are what
    ``ece`` gives on the references, had the teacher written the next token after each prefix.
    ``compute`` takes the student's logits ``[n, v]`` as predictions, the teacher's as references.

    Args:
        bins: number of bins.

    >>> scores = OwnCalibration().compute(predictions=[[0.0, 0.0]], references=[[0.0, -1e9]])
    >>> scores["own_ece"], scores["own_brier"]
    (0.5, 0.5)
    """

    name: ClassVar[str] = "own_calibration"
    description: ClassVar[str] = "gap between confidence and the teacher's word, along the student's own answers"
    scores: ClassVar[dict[str, Better]] = {"own_ece": "lower", "own_brier": "lower", "own_nll": "lower"}
    bounds: ClassVar[dict[str, Bounds]] = {"own_ece": SHARE, "own_brier": (0.0, 2.0), "own_nll": NOT_NEGATIVE}
    settings: ClassVar[str] = "top:1|label:teacher|prefix:student|width:equal|norm:l1|tau:1|agg:token-mean"
    options: ClassVar[dict[str, int]] = {"bins": 10}
    samplers: ClassVar[tuple[Sampler, ...]] = ("student",)
    facts: ClassVar[tuple[str, ...]] = ("top1_prob", "top1_by_teacher", "brier_by_teacher", "nll_by_teacher")

    def __init__(self, **options: Option) -> None:
        super().__init__(**options)
        check_bins(self.chosen["bins"], self.name)

    def measure(self, samples: Mapping[Sampler, OwnFacts]) -> list[Score]:
        """Add up each bin of each answer, and the two proper scores."""
        own = samples["student"]
        bins = self._bins(own)
        return [
            Score("own_ece", bins.mean(1), calibration_error, "lower", answers=bins),
            own.mean_over_tokens("own_brier", own.facts["brier_by_teacher"], ratio(), "lower"),
            own.mean_over_tokens("own_nll", own.facts["nll_by_teacher"], ratio(), "lower"),
        ]

    def curves(self, samples: Mapping[Sampler, OwnFacts]) -> list[Curve]:
        """Return the reliability diagram of the sampled tokens, with the teacher's probability as accuracy."""
        sums = self._bins(samples["student"]).sum(1)
        error = float(calibration_error(sums.sum(0)))
        title = f"Calibration on own answers, ECE {error:.3f}"
        return [reliability_curve("reliability_own", title, (expected_series("by the teacher", sums),))]

    def _bins(self, own: OwnFacts) -> Array:
        """Return count, confidence and expected correctness of each bin, ``[examples, answers, 3 * bins]``."""
        bins, answer = self.chosen["bins"], own.example * own.answers + own.answer
        sums = bin_sums(own.facts["top1_prob"], own.facts["top1_by_teacher"], answer, own.examples * own.answers, bins)
        return sums.reshape(own.examples, own.answers, 3 * bins)


def expected_series(label: str, sums: Array) -> Series:
    """Return the bins that hold predictions, with the jackknife's interval over examples.

    Args:
        label: what the picture calls it.
        sums: count, confidence and expected correctness of each bin, ``[examples, 3 * bins]``.

    >>> expected_series("", np.array([[0.0, 0.0, 0.0, 4.0, 3.0, 1.5]])).y
    (0.375,)
    """
    parts = sums.reshape(len(sums), -1, 3)
    edges = np.arange(parts.shape[1] + 1) / parts.shape[1]
    number = parts[..., 0].sum(0)
    held = number > 0
    confidence = parts[..., 1].sum(0)[held] / number[held]
    line = banded(label, confidence, parts[:, held][..., [2, 0]], ratio(), number[held], SHARE)
    return replace(line, left=tuple(edges[:-1][held].tolist()), right=tuple(edges[1:][held].tolist()))
