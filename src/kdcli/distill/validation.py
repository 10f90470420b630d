"""Evaluation during training: a fixed sample every few steps, the best student saved, early stopping."""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from kdcli.config.sections import DataConfig, EvalSettings, MonitorConfig
from kdcli.data.tokenize import TokenDataset
from kdcli.errors import NumericsError, UsageError
from kdcli.evaluation import scoring
from kdcli.evaluation.answer_sources import LocalAnswers
from kdcli.evaluation.answers import answer
from kdcli.events import Event, Report, silent
from kdcli.loading import splits
from kdcli.loading.info import ModelInfo
from kdcli.loading.session import Session, evaluation_digest
from kdcli.metrics.describe import MetricCard, describe
from kdcli.metrics.titles import current, first
from kdcli.models.devices import Device
from kdcli.models.load import LanguageModel
from kdcli.storage.run_dir import BEST
from kdcli.teachers.base import Teacher

_INPUT_KINDS = ("texts", "tokens")


@dataclass(frozen=True)
class ValidationPlan:
    """What is evaluated during training.

    Args:
        config: how often, by what, and when to end.
        score: name of the score that decides.
        better: which direction of it is better.
        settings: metrics and generation.
        rows: the fixed sample.
        needs_teacher: whether a metric compares with the teacher.
    """

    config: MonitorConfig
    score: str
    better: str
    settings: EvalSettings
    rows: TokenDataset
    needs_teacher: bool

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that the scores, and so early stopping, depend on."""
        return {
            "every": self.config.every,
            "by": first(self.score),
            "patience": self.config.patience,
            "metrics": list(self.settings.metrics),
            "generation": self.settings.generation.model_dump(mode="json", exclude={"batch_tokens"}),
            "rows": evaluation_digest(self.rows),
        }

    @property
    def hash(self) -> str:
        """Eight hex digits over what the numbers follow from; frequency and patience do not count."""
        parts = {name: value for name, value in self.identity.items() if name not in ("every", "patience")}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]


def validation_plan(
    wanted: MonitorConfig,
    data: DataConfig,
    evaluation: EvalSettings,
    teacher: str | None,
    reader: ModelInfo,
    session: Session,
) -> ValidationPlan:
    """Return what a run evaluates during training; no weight is read.

    Args:
        wanted: how often, by what, and when to end.
        data: where rows come from.
        evaluation: how answers are sampled.
        teacher: as named; None for none.
        reader: the model whose tokenizer reads the rows.
        session: what is loaded already.

    Raises:
        UsageError: no rows, or a score that cannot decide.
        InputError: data that cannot be used.
    """
    score, better = deciding_score(wanted, data, teacher)
    split = "dev" if splits.measures_after_training(data, "dev") else "test"
    rows = sample_of(splits.measured_rows(data, split, reader, session), wanted.rows)
    generation = evaluation.generation
    changes = {"metrics": wanted.metrics, "generation": generation.model_copy(update={"seeds": generation.seeds[:1]})}
    compared = any(describe(name).needs_teacher for name in wanted.metrics)
    return ValidationPlan(wanted, score, better, evaluation.model_copy(update=changes), rows, compared)


def deciding_score(wanted: MonitorConfig, data: DataConfig, teacher: str | None) -> tuple[str, str]:
    """Return name and direction of the score that decides which student is best.

    Args:
        wanted: what is measured while training.
        data: where rows come from.
        teacher: as named; None for none.

    Raises:
        UsageError: there are no rows, a metric that cannot be had while training, or no score that can decide.
    """
    cards = [_card(name, teacher) for name in wanted.metrics]
    known = {name: better for card in cards for name, better in card.scores.items()}
    useful = [name for name, better in known.items() if better != "neither"]
    name = current(wanted.by) if wanted.by else next(iter(useful), "")
    if name not in useful:
        what = f'"{name}" says not which student is better' if name else "no score says which student is better"
        fix = f"choose one of {', '.join(useful)}" if useful else "choose metrics such as perplexity"
        raise UsageError("CLI-20", what, where="monitor.by" if wanted.by else "monitor.metrics", fix=fix)
    if not any(splits.measures_after_training(data, split) for split in ("dev", "test")):
        fix = "give --eval-data, or --set data.dev_share=0.1"
        raise UsageError("CLI-20", "no rows to evaluate on", where="--eval-every", fix=fix)
    return name, known[name]


def _card(name: str, teacher: str | None) -> MetricCard:
    card = describe(name)
    if card.input_kind not in _INPUT_KINDS:
        what = f"{card.name} is measured after training only"
        raise UsageError("CLI-20", what, where="monitor.metrics", fix="choose metrics of texts or tokens")
    if card.needs_teacher and teacher is None:
        raise UsageError("EVAL-01", f"{card.name} needs a teacher", where="monitor.metrics", fix="give --teacher")
    return card


def sample_of(dataset: TokenDataset, rows: int) -> TokenDataset:
    """Return so many examples, evenly spread over the data set, always the same ones.

    >>> from kdcli.data.tokenize import Example
    >>> whole = TokenDataset(tuple(Example((1, 2), 1, "", ("",), str(place)) for place in range(10)))
    >>> [example.where for example in sample_of(whole, 4).examples]
    ['0', '2', '5', '7']
    """
    count = len(dataset)
    if rows >= count:
        return dataset
    return replace(dataset, examples=tuple(dataset.examples[place * count // rows] for place in range(rows)))


@dataclass
class Validator:
    """Evaluates a student every few steps; see :class:`kdcli.training.job.Monitor`.

    Args:
        plan: what is measured, on which rows.
        student: the model in training; restricted to the ids that both models share.
        teacher: what it is compared with, where a metric asks for it.
        device: where to compute.
        keep: saves the student as the best so far; called with the step, score and value.
        report: called with the outcome of every evaluation.
    """

    plan: ValidationPlan
    student: LanguageModel
    teacher: Teacher | None
    device: Device
    keep: Callable[[dict[str, Any]], None]
    report: Report
    best: tuple[int, float] | None = field(default=None, init=False)
    _since: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        teacher = self.teacher is not None
        self._chosen = scoring.choose_metrics(self.plan.settings, teacher=teacher, development=False)

    @property
    def ends(self) -> bool:
        """Whether the score has not improved for as many evaluations as there is patience."""
        return self.plan.config.patience is not None and self._since >= self.plan.config.patience

    def recall(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Take in what was measured before; values measured on other rows or otherwise do not count."""
        self.best, self._since = None, 0
        for line in lines:
            found = line.get("evaluation")
            if found is not None and found["of"] == self.plan.hash:
                values = {current(name): value for name, value in found["scores"].items()}
                self._take(line["step"], values.get(self.plan.score))

    def due(self, step: int) -> bool:
        """Whether a step is one to be measured after."""
        return step % (self.plan.config.every or 1) == 0

    def evaluate_if_due(self, step: int) -> dict[str, Any] | None:
        """Measure the student if the step is due; keep it if it is the best so far."""
        if not self.due(step):
            return None
        values = self._measure()
        name, value = self.plan.score, values.get(self.plan.score)
        improved = self._take(step, value)
        if improved:
            self.keep({"step": step, "score": name, "value": value, "of": self.plan.hash})
        said = f"{name} {value:.5g}" if value is not None else f"{name} is not a number"
        before = "" if self.best is None else f", best {self.best[1]:.5g} at step {self.best[0]}"
        rest = f", the best so far, kept in {BEST}/" if improved else before
        self.report(Event("note", f"step {step}: {said}{rest}"))
        if self.ends:
            self.report(Event("note", f"training ends: {name} has not improved for {self._since} evaluations"))
        return {"of": self.plan.hash, "scores": values}

    def _take(self, step: int, value: float | None) -> bool:
        """Take in a value; return whether it is the best so far."""
        sign = 1.0 if self.plan.better == "higher" else -1.0
        if value is not None and (self.best is None or sign * value > sign * self.best[1]):
            self.best, self._since = (step, value), 0
            return True
        self._since += 1
        return False

    def _measure(self) -> dict[str, float | None]:
        """Return every score; None where it is not a finite number."""
        rows, chosen = self.plan.rows, self._chosen
        try:
            with _still(self.student):
                found = scoring.Scores()
                if chosen.texts:
                    generation = self.plan.settings.generation
                    source = LocalAnswers(self.student, generation, self.device)
                    texts = answer(source, rows, generation, silent)
                    found += scoring.score_texts(chosen, scoring.with_reference_tokens(texts, rows, self.student.ends))
                    for said in (*scoring.answer_counts(texts, generation.max_new_tokens).sentences, *found.notes):
                        self.report(Event("note", f"evaluation while training: {said}"))
                found += scoring.score_tokens(chosen, self.student, self.teacher, rows, self.device, silent)
        except NumericsError as error:
            self.report(Event("warning", f"evaluation while training: {error.what}"))
            return {}
        values = {score.name: float(score.value) for score, _ in found.pairs}
        return {name: value if math.isfinite(value) else None for name, value in values.items()}


@contextmanager
def _still(student: LanguageModel) -> Iterator[None]:
    """Switch dropout off and gradients away, and put both back."""
    training = student.model.training
    student.model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        student.model.train(training)
