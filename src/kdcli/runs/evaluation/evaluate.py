"""One evaluation: a model folder, a run, or answers made elsewhere."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdcli import durable
from kdcli.config import DistillConfig, EvalConfig
from kdcli.data.dataset import TokenDataset
from kdcli.engine.devices import Device, prepare
from kdcli.engine.events import Event, Report
from kdcli.errors import UsageError
from kdcli.metrics.score import Score
from kdcli.models.load import load_model
from kdcli.models.vocabulary import shared_vocabulary
from kdcli.runs import splits
from kdcli.runs.evaluation import scoring
from kdcli.runs.evaluation.predictions import read_predictions
from kdcli.runs.evaluation.results import RESULTS, Rows, read_results, write_results
from kdcli.runs.evaluation.scoring import Chosen, Texts
from kdcli.runs.folder import RunFolder, model_of
from kdcli.runs.records import EvalRecord, ScoreInfo
from kdcli.runs.teachers import mentor_for
from kdcli.runs.workshop import ModelFacts, Workshop, evaluation_digest
from kdcli.statistics import over_examples


def evaluate_run(
    config: EvalConfig, report: Report, *, workshop: Workshop | None = None, reuse: bool = False
) -> EvalRecord:
    """Evaluate a run, a model or a file of answers.

    Args:
        config: what to measure, and on what.
        report: told what happens.
        workshop: parts shared with other evaluations.
        reuse: return what is there if it was measured by the same protocol.

    Returns:
        the record; its folder is ``output``, or ``eval/<name>`` of a run folder, or None.

    Raises:
        UsageError: nothing to measure, or a metric that needs what is not there.
        InputError: model or data that cannot be used.
    """
    if config.predictions is not None:
        return _score_predictions(config, report)
    if config.model is None:
        raise UsageError("CLI-20", "nothing to evaluate", where="kd eval", fix="give a model, a run, or --predictions")
    return _score_model(config, config.model, report, workshop or Workshop(), reuse=reuse)


def evaluate_student(run: Path, config: DistillConfig, workshop: Workshop, report: Report) -> EvalRecord:
    """Evaluate a run's student on the run's held-out rows, or its development rows, unless that is done."""
    return evaluate_run(_student_config(run, config), report, workshop=workshop, reuse=True)


def find_evaluation(run: Path, config: DistillConfig, workshop: Workshop) -> EvalRecord | None:
    """Return a run's evaluation if it was made by the protocol that these settings ask for, else None."""
    asked = _ask(_student_config(run, config), str(run), workshop)
    return asked.already_there()


@dataclass(frozen=True)
class _Asked:
    """An evaluation, its parts looked at; no weight is read."""

    chosen: Chosen
    facts: ModelFacts
    teacher: ModelFacts | None
    data: TokenDataset
    device: Device
    protocol: dict[str, Any]
    folder: Path | None
    name: str

    def already_there(self) -> EvalRecord | None:
        """Return what was measured before by the same protocol."""
        if self.folder is None or not (self.folder / RESULTS).is_file():
            return None
        there = read_results(self.folder)
        same = there.protocol == self.protocol and there.model_digest == self.facts.digest
        return there if same else None


def _student_config(run: Path, config: DistillConfig) -> EvalConfig:
    return EvalConfig(
        model=str(run),
        teacher=config.teacher,
        teacher_cache=config.teacher_cache,
        data=config.data,
        hardware=config.hardware,
        evaluation=config.evaluation,
    )


def _ask(config: EvalConfig, model: str, workshop: Workshop) -> _Asked:
    chosen = scoring.choose_metrics(config.evaluation, teacher=config.teacher is not None)
    path = splits.check_measured(config.data, config.evaluation.split)
    device = prepare(config.hardware)
    teacher = config.teacher if chosen.needs_teacher else None
    facts = Workshop().look(model)  # not the shared one: a run's student may have changed since
    other = workshop.look(teacher) if teacher else None
    data = splits.measured_rows(config.data, config.evaluation.split, facts, workshop)
    protocol = _protocol(config, chosen, data, device, other)
    name = splits.evaluation_name(path) if config.evaluation.split == "test" else splits.DEV
    return _Asked(chosen, facts, other, data, device, protocol, _folder(config, model), name)


def _score_model(config: EvalConfig, model: str, report: Report, workshop: Workshop, *, reuse: bool) -> EvalRecord:
    asked = _ask(config, model, workshop)
    if reuse and (there := asked.already_there()) is not None:
        return there
    for note in (*asked.data.notes, *asked.chosen.notes):
        report(Event("note", note))
    pairs, texts = _measure(config, asked, report, workshop)
    examples = Rows([example.where for example in asked.data.examples], texts)
    measured = _Measured(
        asked.name, model, asked.facts.digest, asked.folder, asked.protocol, pairs, examples, asked.chosen.notes
    )
    return _keep(measured, config)


def _measure(
    config: EvalConfig, asked: _Asked, report: Report, workshop: Workshop
) -> tuple[list[tuple[Score, ScoreInfo]], Texts | None]:
    """Load what is needed, ask, and score."""
    facts, other, data, chosen = asked.facts, asked.teacher, asked.data, asked.chosen
    against = other or facts
    vocab = shared_vocabulary(facts.tokenizer, against.tokenizer, facts.rows, against.rows)
    device = asked.device
    student = replace(load_model(model_of(facts.path), device=device.device, role="teacher"), vocab=vocab)
    student.check_length(max(data.lengths))
    mentor = None
    if other is not None:
        mentor = mentor_for(config.teacher_cache, other, data, config.data, config.hardware, device, workshop)
    texts = scoring.answer(student, data, config.evaluation.generation, report) if chosen.texts else None
    pairs = scoring.score_texts(chosen, texts) if texts else []
    return pairs + scoring.score_tokens(chosen, student, mentor, data, device, report), texts


def _score_predictions(config: EvalConfig, report: Report) -> EvalRecord:
    chosen = scoring.choose_metrics(config.evaluation, teacher=False, model=False)
    if not chosen.texts:
        raise UsageError("EVAL-01", "no metric of texts", where="--metric", fix="give one, such as rougeL")
    path = Path(str(config.predictions))
    texts, where = read_predictions(path, need_references=any(metric.needs_references for metric in chosen.texts))
    for note in chosen.notes:
        report(Event("note", note))
    digest = durable.digest_file(path)
    metrics = {metric.name: metric.signature for metric in chosen.all}
    protocol = {"data": digest, "examples": len(where), "metrics": metrics, "generation": None, "teacher": None}
    folder = Path(config.output) if config.output else None
    pairs, rows = scoring.score_texts(chosen, texts), Rows(where, texts)
    name = splits.evaluation_name(str(path))
    return _keep(_Measured(name, str(path), digest, folder, protocol, pairs, rows, chosen.notes), config)


@dataclass(frozen=True)
class _Measured:
    name: str
    model: str
    model_digest: str
    folder: Path | None
    protocol: dict[str, Any]
    pairs: list[tuple[Score, ScoreInfo]]
    rows: Rows
    notes: tuple[str, ...]


def _keep(measured: _Measured, config: EvalConfig) -> EvalRecord:
    """Make the record of what was measured, and write it if there is a place for it."""
    pairs = scoring.each_once(measured.pairs)
    said = [note for score, _ in pairs for note in score.notes]
    record = EvalRecord(
        name=measured.name,
        model=measured.model,
        model_digest=measured.model_digest,
        folder=measured.folder,
        examples=measured.protocol["examples"],
        estimates={score.name: over_examples(score) for score, _ in pairs},
        infos=tuple(scoring.complete(info, measured.protocol) for _, info in pairs),
        protocol=measured.protocol,
        notes=tuple(dict.fromkeys([*measured.notes, *said])),
    )
    if measured.folder is not None:
        scores = [score for score, _ in pairs]
        write_results(measured.folder, record, config.evaluation, measured.rows, scores)
    return record


def _protocol(
    config: EvalConfig, chosen: Chosen, data: TokenDataset, device: Device, teacher: ModelFacts | None
) -> dict[str, Any]:
    """Return everything but the model that the numbers follow from."""
    generation = config.evaluation.generation.model_dump(mode="json")
    return {
        "data": evaluation_digest(data),
        "examples": len(data),
        "metrics": {metric.name: metric.signature for metric in chosen.all},
        "generation": generation if chosen.texts else None,
        "teacher": teacher.digest if teacher else None,
        "precision": str(device.compute).removeprefix("torch."),
    }


def _folder(config: EvalConfig, model: str) -> Path | None:
    if config.output is not None:
        return Path(config.output)
    run = Path(model)
    return run / splits.evaluation_folder(config.data, config.evaluation.split) if RunFolder(run).is_run else None
