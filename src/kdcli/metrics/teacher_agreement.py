"""Perplexity, and agreement and distances between student and teacher on reference responses."""

import math
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from kdcli.bounded import NOT_NEGATIVE, PERCENT, SHARE, Bounds
from kdcli.metrics.base import TokenMetric
from kdcli.metrics.score import Array, Better, Score, mean_and_count, ratio


class Perplexity(TokenMetric):
    """Exponential of the mean negative log-likelihood of the response tokens.

    ``exp(-sum_t log q(y_t) / n)`` over all response tokens of the set, end token included;
    ``nll`` is its logarithm, in nats per token: the test loss, which MiniLLM reads as coverage, how much
    of the data the model still gives mass to. Comparable only between models of one tokenizer.
    ``compute`` takes logits ``[n, v]`` as predictions and token ids ``[n]`` as references.

    >>> Perplexity().compute(predictions=[[0.0, 0.0, 0.0, 0.0]], references=[2])["perplexity"]
    4.0
    """

    name: ClassVar[str] = "perplexity"
    description: ClassVar[str] = "exponential of the test loss nll (coverage), nats per response token"
    scores: ClassVar[dict[str, Better]] = {"perplexity": "lower", "nll": "lower"}
    bounds: ClassVar[dict[str, Bounds]] = {"perplexity": (1.0, math.inf), "nll": NOT_NEGATIVE}
    settings: ClassVar[str] = "unit:token|end:counted|agg:token-mean"
    facts: ClassVar[tuple[str, ...]] = ("label_logp",)

    def measure(self, facts: Mapping[str, Array], example: NDArray[np.int64], examples: int) -> list[Score]:
        """Sum the negative log-likelihoods of each example."""
        sums = mean_and_count(-facts["label_logp"], example, examples)
        return [Score("perplexity", sums, _exp_mean, "lower"), Score("nll", sums, ratio(), "lower")]


def _exp_mean(sums: Array) -> Array:
    with np.errstate(over="ignore"):
        return np.asarray(np.exp(ratio()(sums)))


# How often student and teacher would say the same next token.


class Agreement(TokenMetric):
    """Share of response tokens at which student and teacher have the same top token, times 100.

    Prefixes are the reference responses'. ``compute`` takes the student's logits ``[n, v]`` as
    predictions, the teacher's as references.

    >>> Agreement().compute(predictions=[[1.0, 0.0], [0.0, 1.0]], references=[[3.0, 0.0], [1.0, 0.0]])["agreement"]
    50.0
    """

    name: ClassVar[str] = "agreement"
    description: ClassVar[str] = "share of tokens where student and teacher have the same top token"
    scores: ClassVar[dict[str, Better]] = {"agreement": "higher"}
    bounds: ClassVar[dict[str, Bounds]] = {"agreement": PERCENT}
    settings: ClassVar[str] = "top:1|prefix:reference|agg:token-mean|x100"
    facts: ClassVar[tuple[str, ...]] = ("agree",)

    def measure(self, facts: Mapping[str, Array], example: NDArray[np.int64], examples: int) -> list[Score]:
        """Count the agreements of each example."""
        return [Score("agreement", mean_and_count(facts["agree"], example, examples), ratio(100.0), "higher")]


# Bounded distances between student and teacher, and what they mean for speculative decoding.


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


# Divergence between student and teacher on held-out responses.


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
