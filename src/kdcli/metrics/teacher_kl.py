"""Divergence between student and teacher on held-out responses."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from kdcli.bounded import NOT_NEGATIVE, Bounds
from kdcli.metrics.base import TokenMetric
from kdcli.metrics.score import Array, Better, Score, mean_and_count, ratio


class KLToTeacher(TokenMetric):
    """KL divergence per response token, in nats, both ways.

    ``kl_from_teacher`` is KL(teacher‖student), what forward KL trains; ``kl_to_teacher`` is
    KL(student‖teacher), what reverse KL trains. Prefixes are the reference responses'.
    ``compute`` takes the student's logits ``[n, v]`` as predictions, the teacher's as references.

    >>> KLToTeacher().compute(predictions=[[1.0, 0.0]], references=[[1.0, 0.0]])["kl_to_teacher"]
    0.0
    """

    name: ClassVar[str] = "kl_to_teacher"
    description: ClassVar[str] = "KL divergence from and to the teacher per response token"
    scores: ClassVar[dict[str, Better]] = {"kl_from_teacher": "lower", "kl_to_teacher": "lower"}
    bounds: ClassVar[dict[str, Bounds]] = {"kl_from_teacher": NOT_NEGATIVE, "kl_to_teacher": NOT_NEGATIVE}
    settings: ClassVar[str] = "unit:nats|prefix:reference|tau:1|agg:token-mean"
    facts: ClassVar[tuple[str, ...]] = ("kl_from_teacher", "kl_to_teacher")

    def measure(self, facts: Mapping[str, Array], example: NDArray[np.int64], examples: int) -> list[Score]:
        """Sum both divergences of each example."""
        return [
            Score(name, mean_and_count(facts[name], example, examples), ratio(), "lower")
            for name in ("kl_from_teacher", "kl_to_teacher")
        ]
