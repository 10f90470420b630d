"""Metrics of classification: how probable the model finds each of several given answers."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, ClassVar, Literal

import datasets
import numpy as np
from numpy.typing import NDArray

from kdcli.bounded import NOT_NEGATIVE, PERCENT, SHARE, Bounds
from kdcli.errors import NumericsError
from kdcli.metrics.base import Metric
from kdcli.metrics.calibration import (
    bin_sums,
    brier_scores,
    brier_sums,
    calibration_error,
    check_bins,
    equal_mass_error,
    largest_gap,
    mean_calibration_error,
    reliability_diagram,
)
from kdcli.metrics.curve import Curve
from kdcli.metrics.score import Array, Better, Resampler, Score, facts_from_logits, mean_and_count, ratio, redrawn
from kdcli.metrics.signature import Option
from kdcli.metrics.temperature_scaling import (
    fit_temperature,
    scaled_facts,
    scaling_curve,
    slopes_of,
    temperature_scaling_scores,
)


@dataclass(frozen=True, eq=False)
class ChoiceTable:
    """What a model says about the choices of each row.

    Args:
        scores: log-probability of each choice as a continuation of the prompt, ``[rows, choices]``; minus
            infinity where a row has fewer choices.
        tokens: tokens of each choice, ``[rows, choices]``; 1 where a row has fewer.
        right: index of the right choice, ``[rows]``.
        labels: the choices, where all rows have the same; else empty, and columns are places in the row.
        development: the same of development rows; None without them.
    """

    scores: Array
    tokens: NDArray[np.int64]
    right: NDArray[np.int64]
    labels: tuple[str, ...] = ()
    development: "ChoiceTable | None" = None

    @cached_property
    def logp(self) -> Array:
        """Log-probabilities renormalised over the choices, ``[rows, choices]``."""
        return normalised(self.scores)

    @cached_property
    def facts(self) -> dict[str, Array]:
        """One fact per row, ``[rows]``: the same that token metrics read of a token."""
        return facts_from_logits(self.scores, self.right)

    def means(self) -> "ChoiceTable":
        """Return the table with each score divided by the choice's tokens, and so for the development rows."""
        development = self.development.means() if self.development is not None else None
        return replace(self, scores=self.scores / self.tokens, development=development)


class ChoiceMetric(Metric):
    """A metric of the probabilities of given answers, renormalised over them.

    Options of every such metric:
        bins: number of bins.
        choice_score: "sum" of the log-probabilities of a choice's tokens, or their "mean", so that longer
            choices are not less probable for their length alone.

    Class attributes:
        needs_development: whether it fits something on development rows.
    """

    input_kind: ClassVar[Literal["texts", "tokens", "own", "choices"]] = "choices"
    options: ClassVar[Mapping[str, Option]] = {"bins": 10, "choice_score": "sum"}
    needs_development: ClassVar[bool] = False

    def __init__(self, **options: Option) -> None:
        super().__init__(**options)
        check_bins(self.chosen["bins"], self.name)

    @classmethod
    def needs_teacher(cls) -> bool:
        """Whether it compares with a teacher: choices are the model's own affair."""
        return False

    @abstractmethod
    def measure(self, table: ChoiceTable) -> list[Score]:
        """Score a checked table; see ``scores_from_choices``."""

    def curves(self, table: ChoiceTable) -> list[Curve]:
        """Return what is worth a picture, from the table that ``measure`` takes; nothing by default."""
        return []

    def scores_from_choices(self, table: ChoiceTable) -> list[Score]:
        """Score the choices of each row.

        Args:
            table: what the model says about them.

        Returns:
            the scores named in ``scores``.

        Raises:
            InputError: no rows, shapes that do not fit, or a right answer that is no choice.
            NumericsError: a score is NaN, or a row gives every choice probability 0.
        """
        return self._proven(self.measure(self.checked(table)))

    def checked(self, table: ChoiceTable) -> ChoiceTable:
        """Return the table with this metric's option applied; errors as for the scores."""
        for part in (table, table.development):
            if part is not None:
                self._check(part)
        if self.needs_development and table.development is None:
            raise self._refuse("METRIC-06", "the development rows are missing", "give --set data.dev=FILE")
        return table.means() if self.chosen["choice_score"] == "mean" else table

    def _check(self, table: ChoiceTable) -> None:
        rows = len(table.scores)
        if rows == 0:
            raise self._refuse("METRIC-04", "nothing to score: no rows", "give rows with choices")
        if table.right.shape != (rows,) or table.tokens.shape != table.scores.shape:
            raise self._refuse("METRIC-03", "the table's shapes do not fit", "give one right choice per row")
        if table.right.min() < 0 or table.right.max() >= table.scores.shape[1]:
            raise self._refuse("METRIC-03", "a right answer is not among its choices", "number choices from 0")
        odd = np.isnan(table.scores) | (table.scores == np.inf)
        if odd.any() or (table.scores == -np.inf).all(-1).any():
            row = int((odd.any(-1) | (table.scores == -np.inf).all(-1)).argmax())
            what = f"the log-probabilities of the choices in row {row} are no numbers"
            raise NumericsError("METRIC-05", what, where=f"metric {self.name}", fix="look at the model's logits")

    def _inputs(self) -> datasets.Features:
        row = datasets.Sequence(datasets.Value("float64"))
        return datasets.Features({"predictions": row, "references": datasets.Value("int64")})

    def _compute(self, *, predictions: Sequence[Any], references: Sequence[Any], **_: Any) -> dict[str, float]:
        width = max(len(row) for row in predictions)
        scores = np.array([[*row, *[-np.inf] * (width - len(row))] for row in predictions], dtype=np.float64)
        right = np.array(references, dtype=np.int64)
        table = ChoiceTable(scores, np.ones(scores.shape, dtype=np.int64), right)
        if self.needs_development:
            table = replace(table, development=table)
        return {score.name: score.value for score in self.scores_from_choices(table)}


def normalised(scores: Array) -> Array:
    """Return log-probabilities that add up to 1 over the last axis, from unnormalised ones ``[rows, choices]``.

    >>> np.exp(normalised(np.log([[0.1, 0.3]]))).round(3).tolist()
    [[0.25, 0.75]]
    """
    shifted = scores - scores.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


# Calibration of answers by class, and in bins of equal mass.


class AnswerBins(ChoiceMetric):
    """Expected calibration error of answers with other bins.

    ``answer_ece_classwise`` takes each choice's own probability, not the largest: the mean over classes
    of the equal-width error of "the answer is this class" (static calibration error).
    ``answer_ece_mass`` is the error of the likeliest choice over bins that hold equally many rows;
    ``answer_ace`` is the mean over classes with such bins (adaptive calibration error; both Nixon et
    al. 2019). A class is a label where all rows have the same choices, else a place in the row.
    Equal-mass bins move with the rows, so their standard error is a bootstrap's over rows.
    ``compute`` takes one score per choice as predictions and the right one's place as references.

    Args:
        bins: number of bins.
        choice_score: "sum" of the log-probabilities of a choice's tokens, or their "mean".

    >>> AnswerBins().compute(predictions=[[0.0, 0.0], [0.0, 0.0]], references=[0, 0])["answer_ece_classwise"]
    0.5
    """

    name: ClassVar[str] = "answer_bins"
    description: ClassVar[str] = "ECE of answers: classwise, equal-mass, and adaptive"
    scores: ClassVar[dict[str, Better]] = {
        "answer_ece_classwise": "lower",
        "answer_ece_mass": "lower",
        "answer_ace": "lower",
    }
    bounds: ClassVar[dict[str, Bounds]] = {"answer_ece_classwise": SHARE, "answer_ece_mass": SHARE, "answer_ace": SHARE}
    settings: ClassVar[str] = "norm:choices|end:left-out|norm:l1"
    options: ClassVar[dict[str, Option]] = {"bins": 10, "choice_score": "sum"}
    input_kind: ClassVar[Literal["texts", "tokens", "own", "choices"]] = "choices"

    def measure(self, table: ChoiceTable) -> list[Score]:
        """Bin every class's probability, and the largest one by rank."""
        bins, rows, facts = self.chosen["bins"], len(table.right), table.facts
        row, probability, outcome = np.arange(rows), *class_outcomes(table)
        apart = [bin_sums(p, o, row, rows, bins) for p, o in zip(probability.T, outcome.T, strict=True)]
        top = equal_mass_error(facts["top1_prob"], facts["top1_correct"], row, rows, bins)
        errors = [equal_mass_error(p, o, row, rows, bins) for p, o in zip(probability.T, outcome.T, strict=True)]
        classwise = partial(mean_calibration_error, bins=bins)
        note = () if table.labels else ("answer_bins: rows differ in their choices; a class is a place in the row",)
        return [
            Score("answer_ece_classwise", np.concatenate(apart, axis=-1), classwise, "lower", notes=note),
            redrawn("answer_ece_mass", top),
            redrawn("answer_ace", Resampler(lambda drawn: np.mean([one.value(drawn) for one in errors], axis=0), rows)),
        ]


def class_outcomes(table: ChoiceTable) -> tuple[Array, Array]:
    """Return each choice's probability and whether it is the right one, both ``[rows, choices]``."""
    return np.exp(table.logp), np.eye(table.scores.shape[1])[table.right]


# The Brier score of answers taken apart.


class AnswerBrierParts(ChoiceMetric):
    """The Brier score of answers over all choices, taken apart exactly.

    ``answer_brier = reliability - resolution + uncertainty + within_variance - within_covariance``. Each
    choice is an event of its own with equal-width bins of its probability; the terms are those of
    ``brier_parts`` (Stephenson, Coelho and Jolliffe 2008), summed over the choices. ``compute`` takes one
    score per choice as predictions and the right one's place as references.

    Args:
        bins: number of bins.
        choice_score: "sum" of the log-probabilities of a choice's tokens, or their "mean".

    >>> scores = AnswerBrierParts().compute(predictions=[[0.0, 0.0], [0.0, 0.0]], references=[0, 1])
    >>> scores["answer_brier_reliability"], scores["answer_brier_uncertainty"]
    (0.0, 0.5)
    """

    name: ClassVar[str] = "answer_brier_parts"
    description: ClassVar[str] = "Brier score of answers: reliability - resolution + uncertainty + within bins"
    scores: ClassVar[dict[str, Better]] = {
        "answer_brier_reliability": "lower",
        "answer_brier_resolution": "higher",
        "answer_brier_uncertainty": "neither",
        "answer_brier_within_variance": "neither",
        "answer_brier_within_covariance": "neither",
    }
    bounds: ClassVar[dict[str, Bounds]] = {
        "answer_brier_reliability": (0.0, 2.0),
        "answer_brier_resolution": SHARE,
        "answer_brier_uncertainty": SHARE,
        "answer_brier_within_variance": NOT_NEGATIVE,
    }
    settings: ClassVar[str] = "norm:choices|end:left-out|width:equal|agg:mean"
    options: ClassVar[dict[str, Option]] = {"bins": 10, "choice_score": "sum"}
    input_kind: ClassVar[Literal["texts", "tokens", "own", "choices"]] = "choices"

    def measure(self, table: ChoiceTable) -> list[Score]:
        """Add up five numbers per row, choice and bin."""
        probability, outcome = class_outcomes(table)
        rows, choices = probability.shape
        row, event = np.divmod(np.arange(rows * choices), choices)
        sums = brier_sums(
            probability.ravel(), outcome.ravel(), row, rows, bins=self.chosen["bins"], event=event, events=choices
        )
        return brier_scores("answer_brier", sums, self.chosen["bins"])[1:]  # the whole is a score of ``answers``


# Temperature scaling of the probabilities of given answers.


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
    input_kind: ClassVar[Literal["texts", "tokens", "own", "choices"]] = "choices"
    needs_development: ClassVar[bool] = True

    def measure(self, table: ChoiceTable) -> list[Score]:
        """Fit on the development rows, score the others."""
        temperature, rows = self._fit(table), len(table.right)
        facts = scaled_facts(table.scores, table.right, temperature)
        return temperature_scaling_scores("answer_", temperature, facts, np.arange(rows), rows, self.chosen["bins"])

    def curves(self, table: ChoiceTable) -> list[Curve]:
        """Return the reliability diagrams before and after."""
        name, what, temperature, rows = "reliability_answers_scaled", "Answers", self._fit(table), len(table.right)
        facts = scaled_facts(table.scores, table.right, temperature)
        return [scaling_curve(name, what, temperature, facts, np.arange(rows), rows, self.chosen["bins"])]

    def _fit(self, table: ChoiceTable) -> float:
        rows = table.development
        assert rows is not None, "checked"
        return fit_temperature(lambda beta: slopes_of(rows.scores, rows.right, beta), f"metric {self.name}")


# Accuracy and calibration of answers among given choices.


class Answers(ChoiceMetric):
    """Is the likeliest choice right, and as often as the model says?

    Each choice is scored by the log-probability of its tokens after the prompt, the end token left out;
    a softmax over the row's choices gives its probability, as MiniLLM renormalises the probabilities of
    the label words. ``accuracy`` is the share of rows whose likeliest choice is right, times 100.
    ``answer_ece = sum_k |B_k|/n |accuracy_k - confidence_k|`` over equal-width bins of the likeliest
    choice's probability, ``answer_mce`` the largest of those gaps, ``answer_brier`` the mean of
    ``sum_c (q_c - 1[c = right])^2``, ``answer_nll`` the mean of ``-log q_right``, in nats. Chance is
    no flaw of calibration: a model that gives each of two choices 0.5 has an ECE of 0.
    ``compute`` takes one score per choice as predictions and the right one's place as references.

    Args:
        bins: number of bins.
        choice_score: "sum" of the log-probabilities of a choice's tokens, or their "mean".

    >>> scores = Answers().compute(predictions=[[0.0, 0.0], [0.0, 0.0]], references=[0, 1])
    >>> scores["accuracy"], scores["answer_ece"]
    (50.0, 0.0)
    """

    name: ClassVar[str] = "answers"
    description: ClassVar[str] = "accuracy, ECE, MCE, Brier score and NLL of the likeliest of given choices"
    scores: ClassVar[dict[str, Better]] = {
        "accuracy": "higher",
        "answer_ece": "lower",
        "answer_mce": "lower",
        "answer_brier": "lower",
        "answer_nll": "lower",
    }
    bounds: ClassVar[dict[str, Bounds]] = {
        "accuracy": PERCENT,
        "answer_ece": SHARE,
        "answer_mce": SHARE,
        "answer_brier": (0.0, 2.0),
        "answer_nll": NOT_NEGATIVE,
    }
    settings: ClassVar[str] = "norm:choices|end:left-out|width:equal|agg:mean"
    options: ClassVar[dict[str, Option]] = {"bins": 10, "choice_score": "sum"}
    input_kind: ClassVar[Literal["texts", "tokens", "own", "choices"]] = "choices"

    def measure(self, table: ChoiceTable) -> list[Score]:
        """Keep what adds up for each row."""
        facts, row, rows = table.facts, np.arange(len(table.right)), len(table.right)
        bins = bin_sums(facts["top1_prob"], facts["top1_correct"], row, rows, self.chosen["bins"])
        return [
            Score("accuracy", mean_and_count(facts["top1_correct"], row, rows), ratio(100.0), "higher"),
            Score("answer_ece", bins, calibration_error, "lower", notes=_notes(table)),
            Score("answer_mce", bins, largest_gap, "lower"),
            Score("answer_brier", mean_and_count(facts["brier"], row, rows), ratio(), "lower"),
            Score("answer_nll", mean_and_count(-facts["label_logp"], row, rows), ratio(), "lower"),
        ]

    def curves(self, table: ChoiceTable) -> list[Curve]:
        """Return the reliability diagram of the answers, in bins of equal width and of equal mass."""
        rows, bins = len(table.right), self.chosen["bins"]
        name, what = "reliability_answers", "Answers among choices"
        return [reliability_diagram(name, what, table.facts, np.arange(rows), rows, bins)]


# Macro-F1 and Cohen's kappa: what accuracy hides where some classes are rare.


class MacroF1(ChoiceMetric):
    """Macro-F1 and Cohen's kappa of the likeliest choice.

    ``macro_f1`` is the plain mean over classes of ``2 tp / (predicted + actual)``, times 100, over the classes that a
    row has or the model says. ``kappa = (p_o - p_e) / (1 - p_e)`` (Cohen 1960) is accuracy beyond that of saying
    classes as often as the model does, at random: p_o is the share of rows that are right, p_e the sum over classes of
    predicted share times actual share. It is left out where both are one and the same class throughout. A class is a
    label where all rows have the same choices, else a place in the row. ``compute`` takes one score per choice as
    predictions and the right one's place as references.

    Args:
        bins: read by the other metrics of choices.
        choice_score: "sum" of the log-probabilities of a choice's tokens, or their "mean".

    >>> scores = MacroF1().compute(predictions=[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], references=[0, 1, 1])
    >>> round(scores["macro_f1"], 4), round(scores["kappa"], 4)
    (66.6667, 0.4)
    """

    name: ClassVar[str] = "macro_f1"
    description: ClassVar[str] = "macro-F1 and Cohen's kappa of the likeliest of given choices"
    scores: ClassVar[dict[str, Better]] = {"macro_f1": "higher", "kappa": "higher"}
    bounds: ClassVar[dict[str, Bounds]] = {"macro_f1": PERCENT, "kappa": (-1.0, 1.0)}
    settings: ClassVar[str] = "norm:choices|end:left-out|avg:macro"
    options: ClassVar[dict[str, Option]] = {"bins": 10, "choice_score": "sum"}
    input_kind: ClassVar[Literal["texts", "tokens", "own", "choices"]] = "choices"

    def measure(self, table: ChoiceTable) -> list[Score]:
        """Count for each class the rows that are, that are said, and that are both, ``[rows, 3 * classes]``."""
        classes = np.eye(table.scores.shape[1])
        actual, said = classes[table.right], classes[table.scores.argmax(-1)]
        sums = np.concatenate([actual * said, said, actual], axis=-1)
        note = () if table.labels else ("macro_f1: rows differ in their choices; a class is a place in the row",)
        return [
            Score("macro_f1", sums, _macro_f1, "higher", notes=note),
            Score("kappa", sums, _kappa, "higher", optional=True),
        ]


def _macro_f1(sums: Array) -> Array:
    both, said, actual = np.split(sums, 3, axis=-1)
    met = said + actual
    with np.errstate(divide="ignore", invalid="ignore"):
        each = np.where(met > 0.0, 2.0 * both / met, 0.0)
        return np.asarray(100.0 * each.sum(-1) / (met > 0.0).sum(-1))


def _kappa(sums: Array) -> Array:
    both, said, actual = np.split(sums, 3, axis=-1)
    rows = actual.sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        agreed, chance = both.sum(-1) / rows, (said * actual).sum(-1) / rows**2
        return np.where(chance < 1.0, (agreed - chance) / (1.0 - chance), np.nan)


def _notes(table: ChoiceTable) -> tuple[str, ...]:
    """Say what makes the numbers easy to misread."""
    if len(np.unique(table.right)) > 1 or not table.labels:
        return ()
    return ("answers: the right answer is the same in every row; a model that always says it scores 100",)
