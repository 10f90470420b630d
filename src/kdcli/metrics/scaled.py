"""Scores before and after temperature scaling, side by side."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from kdcli.metrics.bins import bin_sums, calibration_error
from kdcli.metrics.curve import Curve
from kdcli.metrics.reliability import equal_width_series, reliability_curve
from kdcli.metrics.score import Array, Score, mean_and_count, ratio
from kdcli.metrics.temperature import end_of_range

SCALED = "scaled_"
"""What the name of a fact begins with that was taken at the fitted temperature."""


def before_and_after(
    prefix: str, temperature: float, facts: Mapping[str, Array], example: NDArray[np.int64], examples: int, bins: int
) -> list[Score]:
    """Return the temperature, and ECE, Brier score and NLL each as they are and at that temperature.

    Args:
        prefix: what the scores' names begin with.
        temperature: fitted on development rows.
        facts: ``top1_prob``, ``top1_correct``, ``brier`` and ``label_logp``, and all but the second also
            at the temperature, as ``scaled_top1_prob`` and so on, each ``[n]``.
        example: the example each value belongs to, ``[n]``.
        examples: number of examples.
        bins: number of equal-width bins.
    """
    limit = end_of_range(temperature)
    notes = (f"{prefix}temperature: {limit}",) if limit else ()
    scores = [Score(f"{prefix}temperature", None, np.asarray, "neither", corpus=temperature, notes=notes)]
    for score in ("ece", "brier", "nll"):
        for mark, ending in (("", ""), (SCALED, "_scaled")):
            if score == "ece":
                sums = bin_sums(facts[f"{mark}top1_prob"], facts["top1_correct"], example, examples, bins)
                scores.append(Score(f"{prefix}ece{ending}", sums, calibration_error, "lower"))
            else:
                value = facts[f"{mark}brier"] if score == "brier" else -facts[f"{mark}label_logp"]
                sums = mean_and_count(value, example, examples)
                scores.append(Score(f"{prefix}{score}{ending}", sums, ratio(), "lower"))
    return scores


def scaling_curve(
    name: str, what: str, temperature: float, facts: Mapping[str, Array], example: NDArray[np.int64], examples: int,
    bins: int,
) -> Curve:  # fmt: skip
    """Return the reliability diagrams before and after scaling; arguments as for ``before_and_after``."""
    parts = [
        equal_width_series(label, bin_sums(facts[f"{mark}top1_prob"], facts["top1_correct"], example, examples, bins))
        for mark, label in (("", "as it is"), (SCALED, f"temperature {temperature:.3g}"))
    ]
    return reliability_curve(name, f"{what} before and after temperature scaling", tuple(parts))
