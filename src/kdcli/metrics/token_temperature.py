"""Temperature scaling of the next-token probabilities."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kdcli.bounded import NOT_NEGATIVE, SHARE, Bounds
from kdcli.metrics.base import TokenMetric
from kdcli.metrics.bins import check_bins
from kdcli.metrics.curve import Curve
from kdcli.metrics.facts import facts_from_logits
from kdcli.metrics.scaled import SCALED, before_and_after, scaling_curve
from kdcli.metrics.score import Array, Better, Score
from kdcli.metrics.temperature import fit_temperature, slopes_of


class TokenTemperature(TokenMetric):
    """Calibration of the next token before and after one temperature, fitted on development rows.

    The temperature minimises the development rows' negative log-likelihood of ``softmax(logits / T)``
    (Guo et al. 2017, section 4.2); scores ending in ``_scaled`` are the test rows' at that temperature,
    beside the same scores as they are. T > 1 says that the model was too sure. The likeliest token
    stays the same. ``compute`` takes logits ``[n, v]`` as predictions and token ids ``[n]`` as
    references, and fits on them.

    Args:
        bins: number of bins.

    >>> logits, labels = [[2.0, 0.0], [2.0, 0.0], [2.0, 0.0]], [0, 0, 1]
    >>> round(TokenTemperature().compute(predictions=logits, references=labels)["temperature"], 4)
    2.8854
    """

    name: ClassVar[str] = "token_temperature"
    description: ClassVar[str] = "next-token calibration before and after a temperature fitted on development rows"
    scores: ClassVar[dict[str, Better]] = {
        "temperature": "neither",
        "ece": "lower",
        "ece_scaled": "lower",
        "brier": "lower",
        "brier_scaled": "lower",
        "nll": "lower",
        "nll_scaled": "lower",
    }
    bounds: ClassVar[dict[str, Bounds]] = {
        "temperature": NOT_NEGATIVE,
        "ece": SHARE,
        "ece_scaled": SHARE,
        "brier": (0.0, 2.0),
        "brier_scaled": (0.0, 2.0),
        "nll": NOT_NEGATIVE,
        "nll_scaled": NOT_NEGATIVE,
    }
    settings: ClassVar[str] = "fit:nll,dev|top:1|width:equal|agg:token-mean"
    options: ClassVar[dict[str, int]] = {"bins": 10}
    facts: ClassVar[tuple[str, ...]] = (
        "top1_prob",
        "top1_correct",
        "brier",
        "label_logp",
        "scaled_top1_prob",
        "scaled_brier",
        "scaled_label_logp",
        "temperature",
    )

    def __init__(self, **options: int) -> None:
        super().__init__(**options)
        check_bins(self.chosen["bins"], self.name)

    def measure(self, facts: Mapping[str, Array], example: NDArray[np.int64], examples: int) -> list[Score]:
        """Score the facts at temperature 1 and at the fitted one."""
        return before_and_after("", float(facts["temperature"][0]), facts, example, examples, self.chosen["bins"])

    def curves(self, facts: Mapping[str, Array], example: NDArray[np.int64], examples: int) -> list[Curve]:
        """Return the reliability diagrams before and after."""
        name, what, temperature = "reliability_tokens_scaled", "Next-token calibration", float(facts["temperature"][0])
        return [scaling_curve(name, what, temperature, facts, example, examples, self.chosen["bins"])]

    def _compute(self, *, predictions: Sequence[Any], references: Sequence[Any], **_: Any) -> dict[str, float]:
        logits, labels = np.array(predictions, dtype=np.float64), np.array(references, dtype=np.int64)
        temperature = fit_temperature(lambda beta: slopes_of(logits, labels, beta), f"metric {self.name}")
        facts = scaled_facts(logits, labels, temperature)
        rows = len(labels)
        return {score.name: score.value for score in self.scores_from_tokens(facts, np.arange(rows), rows)}


def scaled_facts(logits: Array, labels: NDArray[np.int64], temperature: float) -> dict[str, Array]:
    """Return the facts of logits ``[n, v]`` as they are and divided by a temperature, each ``[n]``.

    >>> scaled_facts(np.array([[2.0, 0.0]]), np.array([0]), 2.0)["scaled_top1_prob"].round(4).tolist()
    [0.7311]
    """
    scaled = facts_from_logits(logits / temperature, labels)
    after = {f"{SCALED}{name}": scaled[name] for name in ("top1_prob", "brier", "label_logp")}
    return facts_from_logits(logits, labels) | after | {"temperature": np.full(len(labels), temperature)}
