"""Temperature scaling of the probabilities of given answers."""

from typing import ClassVar, Literal

import numpy as np

from kdcli.bounded import NOT_NEGATIVE, SHARE, Bounds
from kdcli.metrics.choices import ChoiceMetric, ChoiceTable
from kdcli.metrics.curve import Curve
from kdcli.metrics.scaled import before_and_after, scaling_curve
from kdcli.metrics.score import Better, Score
from kdcli.metrics.signature import Option
from kdcli.metrics.temperature import fit_temperature, slopes_of
from kdcli.metrics.token_temperature import scaled_facts


class AnswerTemperature(ChoiceMetric):
    """Calibration of answers before and after one temperature, fitted on development rows.

    The temperature divides the choices' scores before they are renormalised, and minimises the
    development rows' negative log-likelihood (Guo et al. 2017, section 4.2); scores ending in
    ``_scaled`` are the test rows' at that temperature, beside the same scores as they are. Accuracy
    does not depend on it. ``compute`` takes one score per choice as predictions and the right one's
    place as references, and fits on them.

    Args:
        bins: number of bins.
        choice_score: "sum" of the log-probabilities of a choice's tokens, or their "mean".

    >>> scores, right = [[2.0, 0.0], [2.0, 0.0], [2.0, 0.0]], [0, 0, 1]
    >>> round(AnswerTemperature().compute(predictions=scores, references=right)["answer_temperature"], 4)
    2.8854
    """

    name: ClassVar[str] = "answer_temperature"
    description: ClassVar[str] = "calibration of answers before and after a temperature fitted on development rows"
    scores: ClassVar[dict[str, Better]] = {
        "answer_temperature": "neither",
        "answer_ece": "lower",
        "answer_ece_scaled": "lower",
        "answer_brier": "lower",
        "answer_brier_scaled": "lower",
        "answer_nll": "lower",
        "answer_nll_scaled": "lower",
    }
    bounds: ClassVar[dict[str, Bounds]] = {
        "answer_temperature": NOT_NEGATIVE,
        "answer_ece": SHARE,
        "answer_ece_scaled": SHARE,
        "answer_brier": (0.0, 2.0),
        "answer_brier_scaled": (0.0, 2.0),
        "answer_nll": NOT_NEGATIVE,
        "answer_nll_scaled": NOT_NEGATIVE,
    }
    settings: ClassVar[str] = "fit:nll,dev|norm:choices|end:left-out|width:equal|agg:mean"
    options: ClassVar[dict[str, Option]] = {"bins": 10, "choice_score": "sum"}
    eats: ClassVar[Literal["texts", "tokens", "own", "choices"]] = "choices"
    needs_development: ClassVar[bool] = True

    def measure(self, table: ChoiceTable) -> list[Score]:
        """Fit on the development rows, score the others."""
        temperature, rows = self._fit(table), len(table.right)
        facts = scaled_facts(table.scores, table.right, temperature)
        return before_and_after("answer_", temperature, facts, np.arange(rows), rows, self.chosen["bins"])

    def curves(self, table: ChoiceTable) -> list[Curve]:
        """Return the reliability diagrams before and after."""
        name, what, temperature, rows = "reliability_answers_scaled", "Answers", self._fit(table), len(table.right)
        facts = scaled_facts(table.scores, table.right, temperature)
        return [scaling_curve(name, what, temperature, facts, np.arange(rows), rows, self.chosen["bins"])]

    def _fit(self, table: ChoiceTable) -> float:
        rows = table.development
        assert rows is not None, "checked"
        return fit_temperature(lambda beta: slopes_of(rows.scores, rows.right, beta), f"metric {self.name}")
