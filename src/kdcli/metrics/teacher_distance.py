"""Bounded distances between student and teacher, and what they mean for speculative decoding."""

import math
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from kdcli.bounded import PERCENT, SHARE, Bounds
from kdcli.metrics.base import TokenMetric
from kdcli.metrics.score import Array, Better, Score, mean_and_count, ratio


class TeacherDistance(TokenMetric):
    """Jensen-Shannon divergence, total variation and expected acceptance rate per response token.

    ``jsd_to_teacher = 1/2 KL(p || m) + 1/2 KL(q || m)``, ``m = (p + q) / 2``, in nats, at most log 2.
    ``tvd_to_teacher = 1/2 sum_v |p_v - q_v|``. ``acceptance = 100 (1 - tvd)`` is the share of tokens
    the teacher accepts when the student drafts for it in speculative sampling, after prefixes of
    the reference responses. Means over tokens.
    ``compute`` takes the student's logits ``[n, v]`` as predictions, the teacher's as references.

    Reference: Leviathan et al. 2023, arXiv:2211.17192, theorem 3.5.

    >>> TeacherDistance().compute(predictions=[[0.0, 0.0]], references=[[0.0, -1e9]])["acceptance"]
    50.0
    """

    name: ClassVar[str] = "teacher_distance"
    description: ClassVar[str] = "JSD, total variation and expected speculative acceptance per response token"
    scores: ClassVar[dict[str, Better]] = {"jsd_to_teacher": "lower", "tvd_to_teacher": "lower", "acceptance": "higher"}
    bounds: ClassVar[dict[str, Bounds]] = {
        "jsd_to_teacher": (0.0, math.log(2.0)),
        "tvd_to_teacher": SHARE,
        "acceptance": PERCENT,
    }
    settings: ClassVar[str] = "prefix:reference|tau:1|agg:token-mean"
    facts: ClassVar[tuple[str, ...]] = ("jsd", "total_variation")

    def measure(self, facts: Mapping[str, Array], example: NDArray[np.int64], examples: int) -> list[Score]:
        """Sum both distances of each example."""
        jsd, tvd = facts["jsd"], facts["total_variation"]
        return [
            Score("jsd_to_teacher", mean_and_count(jsd, example, examples), ratio(), "lower"),
            Score("tvd_to_teacher", mean_and_count(tvd, example, examples), ratio(), "lower"),
            Score("acceptance", mean_and_count(1.0 - tvd, example, examples), ratio(100.0), "higher"),
        ]
