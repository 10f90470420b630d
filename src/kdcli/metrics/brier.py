"""The Brier score taken apart: reliability, resolution, uncertainty, and what happens within a bin."""

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from kdcli.bounded import SHARE, Bounds
from kdcli.metrics.base import TokenMetric
from kdcli.metrics.bins import check_bins, equal_width
from kdcli.metrics.score import Array, Better, Score, add_up

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
