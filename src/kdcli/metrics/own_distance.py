"""Agreement of student and teacher along the student's own answers."""

import math
from collections.abc import Mapping
from typing import ClassVar

from kdcli.bounded import PERCENT, SHARE, Bounds
from kdcli.metrics.own import OwnFacts, OwnMetric, Sampler
from kdcli.metrics.score import Better, Score, ratio


class OwnDistance(OwnMetric):
    """Agreement, Jensen-Shannon divergence, total variation and acceptance rate on the student's own answers.

    The same quantities as ``agreement`` and ``teacher_distance``, at the tokens of answers that the
    student sampled instead of the references'. ``own_acceptance = 100 (1 - tvd)`` is the expected share
    of drafted tokens that the teacher accepts after prefixes like these.
    ``compute`` takes the student's logits ``[n, v]`` as predictions, the teacher's as references.

    Reference: Leviathan et al. 2023, arXiv:2211.17192, theorem 3.5.

    >>> OwnDistance().compute(predictions=[[0.0, 0.0]], references=[[0.0, -1e9]])["own_acceptance"]
    50.0
    """

    name: ClassVar[str] = "own_distance"
    description: ClassVar[str] = "top token, JSD, total variation and acceptance along the student's own answers"
    scores: ClassVar[dict[str, Better]] = {
        "own_agreement": "higher",
        "own_jsd": "lower",
        "own_tvd": "lower",
        "own_acceptance": "higher",
    }
    bounds: ClassVar[dict[str, Bounds]] = {
        "own_agreement": PERCENT,
        "own_jsd": (0.0, math.log(2.0)),
        "own_tvd": SHARE,
        "own_acceptance": PERCENT,
    }
    settings: ClassVar[str] = "prefix:student|tau:1|agg:token-mean"
    samplers: ClassVar[tuple[Sampler, ...]] = ("student",)
    facts: ClassVar[tuple[str, ...]] = ("agree", "jsd", "total_variation")

    def measure(self, samples: Mapping[Sampler, OwnFacts]) -> list[Score]:
        """Sum each quantity over each answer."""
        own = samples["student"]
        tvd = own.facts["total_variation"]
        return [
            own.mean_over_tokens("own_agreement", own.facts["agree"], ratio(100.0), "higher"),
            own.mean_over_tokens("own_jsd", own.facts["jsd"], ratio(), "lower"),
            own.mean_over_tokens("own_tvd", tvd, ratio(), "lower"),
            own.mean_over_tokens("own_acceptance", 1.0 - tvd, ratio(100.0), "higher"),
        ]
