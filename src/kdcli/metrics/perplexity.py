"""Perplexity of the reference responses."""

import math
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from kdcli.bounded import NOT_NEGATIVE, Bounds
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
