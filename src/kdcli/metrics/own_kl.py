"""Divergence between student and teacher along the student's own answers."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from kdcli.bounded import NOT_NEGATIVE, Bounds
from kdcli.metrics.band import banded
from kdcli.metrics.curve import Curve
from kdcli.metrics.own import OwnFacts, OwnMetric, Sampler
from kdcli.metrics.score import Better, Score, ratio

_DIRECTIONS = {"kl_from_teacher": "KL(teacher‖student)", "kl_to_teacher": "KL(student‖teacher)"}


class OwnKL(OwnMetric):
    """KL divergence per token of answers the student sampled, in nats, both ways.

    ``own_kl_from_teacher`` is KL(teacher‖student), ``own_kl_to_teacher`` is KL(student‖teacher), each the
    mean over the tokens of the student's own answers, first and end token included. The curve gives
    both by position: at position t over the answers that have a token there, which become fewer.
    ``compute`` takes the student's logits ``[n, v]`` as predictions, the teacher's as references.

    >>> OwnKL().compute(predictions=[[1.0, 0.0]], references=[[1.0, 0.0]])["own_kl_to_teacher"]
    0.0
    """

    name: ClassVar[str] = "own_kl"
    description: ClassVar[str] = "KL divergence from and to the teacher along the student's own answers"
    scores: ClassVar[dict[str, Better]] = {"own_kl_from_teacher": "lower", "own_kl_to_teacher": "lower"}
    bounds: ClassVar[dict[str, Bounds]] = {"own_kl_from_teacher": NOT_NEGATIVE, "own_kl_to_teacher": NOT_NEGATIVE}
    settings: ClassVar[str] = "unit:nats|prefix:student|tau:1|agg:token-mean"
    samplers: ClassVar[tuple[Sampler, ...]] = ("student",)
    facts: ClassVar[tuple[str, ...]] = ("kl_from_teacher", "kl_to_teacher")

    def measure(self, samples: Mapping[Sampler, OwnFacts]) -> list[Score]:
        """Sum both divergences of each answer."""
        own = samples["student"]
        return [own.mean_over_tokens(f"own_{name}", own.facts[name], ratio(), "lower") for name in self.facts]

    def curves(self, samples: Mapping[Sampler, OwnFacts]) -> list[Curve]:
        """Draw both divergences by position in the answer."""
        own = samples["student"]
        seen = 1 + int(own.position.max())
        tokens = own.per_position(np.ones(len(own.position)))[:, :seen]
        count, steps = np.bincount(own.position, minlength=seen), np.arange(1, seen + 1)
        lines = [
            banded(
                label,
                steps,
                np.stack([own.per_position(own.facts[name])[:, :seen], tokens], -1),
                ratio(),
                count,
                NOT_NEGATIVE,
            )
            for name, label in _DIRECTIONS.items()
        ]
        title = "Divergence along the student's own answers"
        return [Curve("own_kl", title, "position in the answer, tokens", "KL divergence, nats", tuple(lines))]
