"""Calibration of the next token with other bins."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from kdcli.bounded import SHARE, Bounds
from kdcli.metrics.base import TokenMetric
from kdcli.metrics.bins import bin_sums, check_bins, largest_gap
from kdcli.metrics.equal_mass import equal_mass_error
from kdcli.metrics.score import Array, Better, Score, redrawn


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
