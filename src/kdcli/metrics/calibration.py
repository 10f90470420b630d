"""Calibration of the next-token probabilities."""

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from kdcli.bounded import NOT_NEGATIVE, SHARE, Bounds, score_interval
from kdcli.errors import InputError
from kdcli.metrics.base import TokenMetric
from kdcli.metrics.curve import Curve, Series, series
from kdcli.metrics.score import Array, Better, Resampler, Score, add_up, mean_and_count, ratio, redrawn

# Bins of predictions by confidence, as additive statistics: count, confidence, correctness of each bin.


def check_bins(bins: int, metric: str) -> int:
    """Return the number of bins.

    Raises:
        InputError: it is below 1.
    """
    if bins < 1:
        raise InputError("METRIC-02", f"bins must be at least 1, got {bins}", where=f"metric {metric}", fix="bins=10")
    return bins


def equal_width(confidence: Array, bins: int) -> NDArray[np.int64]:
    """Return the bin of each confidence: bin k holds ``k/bins <= c < (k+1)/bins``, the last one also 1.

    Args:
        confidence: numbers from 0 to 1, of any shape.
        bins: number of bins.

    >>> equal_width(np.array([0.0, 0.29, 0.3, 0.7, 1.0]), 10).tolist()
    [0, 2, 3, 7, 9]
    """
    edges = np.arange(1, bins) / bins
    return np.searchsorted(edges, confidence, side="right").astype(np.int64)


def equal_mass(confidence: Array, bins: int) -> NDArray[np.int64]:
    """Return the bin of each confidence, the bins holding equally many predictions as far as ties allow.

    A prediction's bin is ``floor(bins * below / n)``, with ``below`` the predictions of lower confidence;
    equal confidences share a bin, so that no number depends on the order of the predictions.

    Args:
        confidence: numbers, ``[n]``.
        bins: number of bins; some stay empty where many confidences are equal.

    >>> equal_mass(np.array([0.9, 0.1, 0.2, 0.2]), 2).tolist()
    [1, 0, 0, 0]
    """
    below = np.searchsorted(np.sort(confidence), confidence, side="left")
    return below * bins // len(confidence)


def bin_sums(confidence: Array, correct: Array, example: NDArray[np.int64], examples: int, bins: int) -> Array:
    """Add up count, confidence and correctness by example and equal-width bin.

    Args:
        confidence: largest probability of each token, shape ``[n]``.
        correct: 1 where the top token is the label, shape ``[n]``.
        example: the token's example, shape ``[n]``.
        examples: number of examples.
        bins: number of equal-width bins.

    Returns:
        sums of shape ``[examples, 3 * bins]``, in the order count, confidence, correct of each bin.
    """
    values = np.stack([np.ones_like(confidence), confidence, correct], axis=-1)
    inside = example * bins + equal_width(confidence, bins)
    return add_up(values, inside, examples * bins).reshape(examples, 3 * bins)


def calibration_error(sums: Array) -> Array:
    """Return the expected calibration error from sums ``[..., 3 * bins]``; NaN where there are no tokens.

    >>> calibration_error(np.array([1.0, 0.75, 1.0, 1.0, 0.5, 0.0])).item()
    0.375
    """
    count, confidence, correct = _columns(sums)
    gaps = np.abs(correct - confidence).sum(-1)
    return ratio()(np.stack([gaps, count.sum(-1)], axis=-1))


def mean_calibration_error(sums: Array, bins: int) -> Array:
    """Return the mean calibration error over classes, from sums ``[..., classes * 3 * bins]``.

    >>> mean_calibration_error(np.array([1.0, 0.75, 1.0, 1.0, 0.5, 0.0]), 1).item()
    0.375
    """
    return np.asarray(calibration_error(sums.reshape(*sums.shape[:-1], -1, 3 * bins)).mean(-1))


def largest_gap(sums: Array) -> Array:
    """Return the maximum calibration error, ``max_k |accuracy_k - confidence_k|``, from sums ``[..., 3 * bins]``.

    Empty bins do not count; NaN where there are no tokens.

    >>> largest_gap(np.array([1.0, 0.75, 1.0, 1.0, 0.5, 0.0])).item()
    0.5
    """
    count, confidence, correct = _columns(sums)
    with np.errstate(divide="ignore", invalid="ignore"):
        gaps = np.where(count > 1e-9, np.abs(correct - confidence) / count, 0.0)
    return np.where(count.sum(-1) > 1e-9, gaps.max(-1), np.nan)


def _columns(sums: Array) -> tuple[Array, Array, Array]:
    count, confidence, correct = np.moveaxis(sums.reshape(*sums.shape[:-1], -1, 3), -1, 0)
    return count, confidence, correct


# Reliability diagrams: how often predictions are right, by how sure they are.


_NORMAL = 1.959963984540054
"""The 97.5 % quantile of the normal distribution."""


def reliability_curve(name: str, title: str, parts: tuple[Series, ...]) -> Curve:
    """Return the diagram of one or several binnings, side by side."""
    return Curve(name, title, "confidence", "accuracy", parts, "reliability")


def reliability_diagram(
    name: str, what: str, facts: Mapping[str, Array], example: NDArray[np.int64], examples: int, bins: int
) -> Curve:
    """Return the diagram of the likeliest token or choice, in bins of equal width and of equal mass.

    Args:
        name: of the curve.
        what: what is diagrammed; the title adds the ECE.
        facts: ``top1_prob`` and ``top1_correct``, each ``[n]``.
        example: the example each prediction belongs to, ``[n]``.
        examples: number of examples.
        bins: number of bins.
    """
    confidence, correct = facts["top1_prob"], facts["top1_correct"]
    sums = bin_sums(confidence, correct, example, examples, bins)
    parts = (
        equal_width_series("equal width", sums),
        equal_mass_series("equal mass", confidence, correct, example, examples, bins),
    )
    return reliability_curve(name, f"{what}, ECE {float(calibration_error(sums.sum(0))):.3f}", parts)


def equal_width_series(label: str, sums: Array) -> Series:
    """Return the bins that hold predictions, from the sums of equal-width bins.

    Args:
        label: what the picture calls it.
        sums: count, confidence and correct of each bin, ``[examples, 3 * bins]``.

    Returns:
        x is the mean confidence of a bin, y its accuracy; ``left`` and ``right`` are its edges.
        ``low`` and ``high`` are Wilson's interval at the effective number of predictions, for
        predictions of one example are not independent.

    >>> equal_width_series("", np.array([[0.0, 0.0, 0.0, 4.0, 3.0, 2.0]])).y
    (0.5,)
    """
    bins = sums.shape[-1] // 3
    return _series(label, sums, np.arange(bins) / bins, np.arange(1, bins + 1) / bins)


def equal_mass_series(
    label: str, confidence: Array, correct: Array, example: NDArray[np.int64], examples: int, bins: int
) -> Series:
    """Return bins of equally many predictions; the edges are the lowest and the highest confidence in each.

    Args:
        label: what the picture calls it.
        confidence: largest probability of each prediction, ``[n]``.
        correct: 1 where it is right, ``[n]``.
        example: the example each belongs to, ``[n]``.
        examples: number of examples.
        bins: number of bins.
    """
    inside = equal_mass(confidence, bins)
    values = np.stack([np.ones_like(confidence), confidence, correct], axis=-1)
    sums = add_up(values, example * bins + inside, examples * bins).reshape(examples, 3 * bins)
    left, right = np.full(bins, np.inf), np.full(bins, -np.inf)
    np.minimum.at(left, inside, confidence)
    np.maximum.at(right, inside, confidence)
    return _series(label, sums, left, right)


def _series(label: str, sums: Array, left: Array, right: Array) -> Series:
    count, confidence, correct = _columns(sums)
    held = count.sum(0) > 0
    count, confidence, correct = count[:, held], confidence[:, held], correct[:, held]
    number = count.sum(0)
    accuracy = correct.sum(0) / number
    trials = _effective(count, correct, accuracy)
    half = _NORMAL * np.sqrt(accuracy * (1 - accuracy) / trials)
    low, high = score_interval(accuracy, half, SHARE, _NORMAL**2 / trials)
    return series(
        label, confidence.sum(0) / number, accuracy, low=low, high=high, count=number,
        left=left[held], right=right[held],
    )  # fmt: skip


def _effective(count: Array, correct: Array, accuracy: Array) -> Array:
    """Return how many independent predictions would be as uncertain, ``[bins]``, from counts ``[examples, bins]``."""
    number, owners = count.sum(0), (count > 0).sum(0)
    spread = ((correct - accuracy * count) ** 2).sum(0) * owners / np.maximum(owners - 1, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = accuracy * (1 - accuracy) * number**2 / spread
    return np.where(spread > 0, np.clip(found, 1.0, number), owners)


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
        what, bins = "Next-token calibration on references", self.chosen["bins"]
        return [reliability_diagram("reliability_tokens", what, facts, example, examples, bins)]


# The Brier score taken apart: reliability, resolution, uncertainty, and what happens within a bin.


PARTS: Mapping[str, Better] = {
    "reliability": "lower",
    "resolution": "higher",
    "uncertainty": "neither",
    "within_variance": "neither",
    "within_covariance": "neither",
}
"""The terms of the decomposition and which direction is better."""


class BrierParts(TokenMetric):
    """The Brier score of the top token, taken apart exactly.

    For each token, ``c`` is the probability of the likeliest token and ``o`` is 1 where that is the
    label. Over equal-width bins k of c, ``mean (c - o)^2 = reliability - resolution + uncertainty
    + within_variance - within_covariance`` (Stephenson, Coelho and Jolliffe 2008, equation 7), with
    ``reliability = sum_k n_k/n (mean c - mean o)^2``, ``resolution = sum_k n_k/n (mean o - o_all)^2``,
    ``uncertainty = o_all (1 - o_all)``, and the bins' variance of c and twice the covariance of c and o.
    The last two are 0 if every bin holds one confidence. ``compute`` takes logits ``[n, v]`` as
    predictions and token ids ``[n]`` as references.

    Args:
        bins: number of bins.

    >>> scores = BrierParts().compute(predictions=[[0.0, 0.0], [0.0, 0.0]], references=[0, 1])
    >>> scores["top1_brier"], scores["top1_brier_uncertainty"]
    (0.25, 0.25)
    """

    name: ClassVar[str] = "brier_parts"
    description: ClassVar[str] = "the top token's Brier score: reliability - resolution + uncertainty + within bins"
    scores: ClassVar[dict[str, Better]] = {
        "top1_brier": "lower",
        "top1_brier_reliability": "lower",
        "top1_brier_resolution": "higher",
        "top1_brier_uncertainty": "neither",
        "top1_brier_within_variance": "neither",
        "top1_brier_within_covariance": "neither",
    }
    bounds: ClassVar[dict[str, Bounds]] = {
        "top1_brier": SHARE,
        "top1_brier_reliability": SHARE,
        "top1_brier_resolution": (0.0, 0.25),
        "top1_brier_uncertainty": (0.0, 0.25),
        "top1_brier_within_variance": (0.0, 0.25),
    }
    settings: ClassVar[str] = "top:1|width:equal|agg:token-mean"
    options: ClassVar[dict[str, int]] = {"bins": 10}
    facts: ClassVar[tuple[str, ...]] = ("top1_prob", "top1_correct")

    def __init__(self, **options: int) -> None:
        super().__init__(**options)
        check_bins(self.chosen["bins"], self.name)

    def measure(self, facts: Mapping[str, Array], example: NDArray[np.int64], examples: int) -> list[Score]:
        """Add up five numbers per example and bin."""
        sums = brier_sums(facts["top1_prob"], facts["top1_correct"], example, examples, bins=self.chosen["bins"])
        return brier_scores("top1_brier", sums, self.chosen["bins"])


def brier_sums(
    probability: Array, outcome: Array, example: NDArray[np.int64], examples: int, *, bins: int,
    event: NDArray[np.int64] | int = 0, events: int = 1,
) -> Array:  # fmt: skip
    """Add up n, p, o, p² and p·o by example, event and bin of p.

    Args:
        probability: forecast p of each case, ``[n]``.
        outcome: 1 where the event came, else 0, ``[n]``.
        example: the example each case belongs to, ``[n]``.
        examples: number of examples.
        bins: number of equal-width bins.
        event: which event was forecast, such as the class, ``[n]``.
        events: number of events.

    Returns:
        ``[examples, events * bins * 5]``.
    """
    values = np.stack([np.ones_like(probability), probability, outcome, probability**2, probability * outcome], -1)
    cell = (example * events + event) * bins + equal_width(probability, bins)
    return add_up(values, cell, examples * events * bins).reshape(examples, events * bins * 5)


def brier_scores(name: str, sums: Array, bins: int) -> list[Score]:
    """Return the Brier score and its parts, each named ``name_part``, from ``brier_sums``."""
    whole = Score(name, sums, partial(brier_part, part="whole", bins=bins), "lower")
    parts = [Score(f"{name}_{part}", sums, partial(brier_part, part=part, bins=bins), PARTS[part]) for part in PARTS]
    return [whole, *parts]


def brier_part(sums: Array, part: str, bins: int) -> Array:
    """Return one part of the Brier score, summed over the events and averaged over the cases of each.

    Args:
        sums: as ``brier_sums`` returns them, ``[..., events * bins * 5]``.
        part: "whole" or a name in ``PARTS``.
        bins: number of bins.

    >>> brier_part(np.array([2.0, 1.5, 1.0, 1.125, 0.75]), "reliability", 1).item()
    0.0625
    """
    number, p, o, square, product = np.moveaxis(sums.reshape(*sums.shape[:-1], -1, bins, 5), -1, 0)
    cases = number.sum(-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        share, base = number / cases, o.sum(-1, keepdims=True) / cases
        p, o, square, product = (np.where(number > 1e-9, one / number, 0.0) for one in (p, o, square, product))
        terms = {
            "whole": square - 2 * product + o,
            "reliability": (p - o) ** 2,
            "resolution": (o - base) ** 2,
            "uncertainty": base * (1 - base),
            "within_variance": square - p**2,
            "within_covariance": 2 * (product - p * o),
        }
        return np.asarray((share * terms[part]).sum((-2, -1)))


# The calibration error over bins that hold equally many predictions, on any draw of the examples.


_AT_ONCE = 2**20
"""Numbers of one table of weights, so that many draws of many predictions stay small."""


def equal_mass_error(
    confidence: Array, correct: Array, example: NDArray[np.int64], examples: int, bins: int
) -> Resampler:
    """Return the expected calibration error over equal-mass bins, as a function of the draw.

    A prediction's bin is ``floor(bins * below / n)``, with ``below`` the drawn predictions of lower confidence and
    ``n`` all drawn ones. Examples are put into an order of their own, so that no number depends on the given one.

    Args:
        confidence: forecast probability of each prediction, ``[n]``.
        correct: 1 where it came true, ``[n]``.
        example: the example each prediction belongs to, ``[n]``.
        examples: number of examples.
        bins: number of bins.

    >>> confidence, correct = np.array([0.1, 0.3, 0.9, 0.7]), np.array([0.0, 0.0, 1.0, 1.0])
    >>> round(equal_mass_error(confidence, correct, np.arange(4), 4, 2).whole(), 12)
    0.2
    """
    sums = add_up(np.stack([confidence, correct, np.ones_like(correct)], axis=-1), example, examples)
    rank = np.empty(examples, dtype=np.int64)
    rank[np.lexsort(sums.T)] = np.arange(examples)
    order = np.lexsort((rank[example], correct, confidence))
    owner, sure, right = rank[example][order], confidence[order], correct[order]
    first = np.searchsorted(sure, sure, side="left")
    return Resampler(partial(_errors, owner=owner, sure=sure, right=right, first=first, bins=bins), examples)


def _errors(drawn: Array, *, owner: np.ndarray, sure: Array, right: Array, first: np.ndarray, bins: int) -> Array:
    step = max(1, _AT_ONCE // len(sure))
    parts = [
        _some(drawn[start : start + step][:, owner], sure, right, first, bins) for start in range(0, len(drawn), step)
    ]
    return np.concatenate(parts)


def _some(weight: Array, sure: Array, right: Array, first: np.ndarray, bins: int) -> Array:
    """Return the error of some draws from the weight of each prediction, ``[draws, n]``."""
    upto = np.cumsum(weight, axis=1)
    number = upto[:, -1:]
    below = np.take_along_axis(np.pad(upto, ((0, 0), (1, 0))), first[None], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        inside = np.minimum(below * bins // np.maximum(number, 1.0), bins - 1).astype(np.int64)
        cell = inside + bins * np.arange(len(weight))[:, None]
        gaps = np.bincount(cell.ravel(), (weight * (right - sure)).ravel(), minlength=bins * len(weight))
        return np.abs(gaps.reshape(-1, bins)).sum(1) / number[:, 0]


# Calibration of the next token with other bins.


class TokenBins(TokenMetric):
    """Calibration of the likeliest next token: equal-mass bins, and the largest gap.

    ``ece_mass = sum_k |B_k|/n |accuracy_k - confidence_k|`` over bins that hold equally many tokens, as
    far as ties allow; ``mce = max_k |accuracy_k - confidence_k|`` over the equal-width bins of ``ece``.
    Equal-mass bins move with the tokens, so their standard error is a bootstrap's over examples. ``compute``
    takes logits ``[n, v]`` as predictions and token ids ``[n]`` as references.

    Args:
        bins: number of bins.

    >>> TokenBins().compute(predictions=[[0.0, 0.0], [0.0, 0.0]], references=[0, 0])["mce"]
    0.5
    """

    name: ClassVar[str] = "token_bins"
    description: ClassVar[str] = "calibration of the top token: equal-mass ECE, and the largest gap (MCE)"
    scores: ClassVar[dict[str, Better]] = {"ece_mass": "lower", "mce": "lower"}
    bounds: ClassVar[dict[str, Bounds]] = {"ece_mass": SHARE, "mce": SHARE}
    settings: ClassVar[str] = "top:1|norm:l1,max|agg:token-mean"
    options: ClassVar[dict[str, int]] = {"bins": 10}
    facts: ClassVar[tuple[str, ...]] = ("top1_prob", "top1_correct")

    def __init__(self, **options: int) -> None:
        super().__init__(**options)
        check_bins(self.chosen["bins"], self.name)

    def measure(self, facts: Mapping[str, Array], example: NDArray[np.int64], examples: int) -> list[Score]:
        """Bin by rank and by width."""
        confidence, correct, bins = facts["top1_prob"], facts["top1_correct"], self.chosen["bins"]
        return [
            redrawn("ece_mass", equal_mass_error(confidence, correct, example, examples, bins)),
            Score("mce", bin_sums(confidence, correct, example, examples, bins), largest_gap, "lower"),
        ]
