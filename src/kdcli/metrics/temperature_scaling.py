"""Temperature scaling: the temperature that fits held-out answers best, and calibration after it."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kdcli.bounded import NOT_NEGATIVE, SHARE, Bounds
from kdcli.errors import NumericsError
from kdcli.metrics.base import TokenMetric
from kdcli.metrics.calibration import bin_sums, calibration_error, check_bins, equal_width_series, reliability_curve
from kdcli.metrics.curve import Curve
from kdcli.metrics.score import Array, Better, Score, facts_from_logits, mean_and_count, ratio

Slopes: TypeAlias = Callable[[float], tuple[float, float]]
"""From ``beta = 1/T`` to the first and second derivative of the negative log-likelihood summed over all answers."""

_LOWEST, _HIGHEST = 1e-3, 1e3
_STEPS = 60
_CLOSE = 1e-5


def fit_temperature(slopes: Slopes, where: str) -> float:
    """Return the temperature that minimises the negative log-likelihood of development answers.

    ``sum_i -log softmax(z_i / T)[y_i]`` is convex in ``beta = 1/T`` (Guo et al. 2017, section 4.2); its
    derivatives are ``sum_i (E_q[z] - z_y)`` and ``sum_i Var_q[z]``. Newton's method from T = 1 within a
    bracket that halves where a step leaves it; every evaluation may be a pass over data.

    Args:
        slopes: the two derivatives at a beta.
        where: what is fitted, for messages.

    Returns:
        T between 0.001 and 1000; those ends where the likelihood has no minimum between them, as when
        every answer is right or every answer is wrong.

    Raises:
        NumericsError: a derivative is not a number.

    >>> round(fit_temperature(lambda beta: (beta - 0.5, 1.0), "a parabola"), 6)
    2.0
    """
    low, high, beta = 1.0 / _HIGHEST, 1.0 / _LOWEST, 1.0
    for _ in range(_STEPS):
        first, second = slopes(beta)
        if not (math.isfinite(first) and math.isfinite(second)):
            what = "the development answers' likelihood is not a number"
            raise NumericsError("METRIC-05", what, where=where, fix="look at the model's logits")
        if first == 0.0:
            break
        low, high = (low, beta) if first > 0.0 else (beta, high)
        step = beta - first / second if second > 0.0 else math.inf if first < 0.0 else -math.inf
        nearer = step if low < step < high else math.sqrt(low * high)
        if abs(math.log(nearer / beta)) < _CLOSE:
            beta = nearer
            break
        beta = nearer
    return 1.0 / beta


def end_of_range(temperature: float) -> str:
    """Say so where a fitted temperature is an end of its range, for then there is no best one; else nothing.

    >>> end_of_range(1.2), end_of_range(1000.0)[:26]
    ('', 'the fit ended at its limit')
    """
    if temperature >= 0.99 * _HIGHEST:
        return (
            "the fit ended at its limit: on the development rows the model's scores point away from the right answers"
        )
    if temperature <= 1.01 * _LOWEST:
        return "the fit ended at its limit: every development row was answered right, and surer is always better"
    return ""


def slopes_of(logits: Array, labels: np.ndarray, beta: float) -> tuple[float, float]:
    """Return both derivatives of the summed negative log-likelihood at ``beta = 1/T``.

    Args:
        logits: ``[n, v]``; minus infinity for what cannot be chosen.
        labels: index of the right answer, ``[n]``.
        beta: inverse temperature.

    >>> slopes_of(np.array([[0.0, 2.0]]), np.array([1]), 0.0)
    (-1.0, 1.0)
    """
    top = logits.max(-1, keepdims=True)
    shifted = np.where(np.isfinite(logits), logits - top, 0.0)
    weight = np.where(np.isfinite(logits), np.exp(beta * shifted), 0.0)
    q = weight / weight.sum(-1, keepdims=True)
    mean = (q * shifted).sum(-1)
    variance = (q * (shifted - mean[:, None]) ** 2).sum(-1)
    chosen = shifted[np.arange(len(labels)), labels]
    return math.fsum(mean - chosen), math.fsum(variance)


# Scores before and after temperature scaling, side by side.


SCALED = "scaled_"
"""What the name of a fact begins with that was taken at the fitted temperature."""


def temperature_scaling_scores(
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
    """Return the reliability diagrams before and after scaling; arguments as for ``temperature_scaling_scores``."""
    parts = [
        equal_width_series(label, bin_sums(facts[f"{mark}top1_prob"], facts["top1_correct"], example, examples, bins))
        for mark, label in (("", "as it is"), (SCALED, f"temperature {temperature:.3g}"))
    ]
    return reliability_curve(name, f"{what} before and after temperature scaling", tuple(parts))


# Temperature scaling of the next-token probabilities.


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
        return temperature_scaling_scores(
            "", float(facts["temperature"][0]), facts, example, examples, self.chosen["bins"]
        )

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
