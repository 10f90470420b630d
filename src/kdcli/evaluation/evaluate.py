"""``kd eval``: evaluates a model folder, a run, or answers made elsewhere."""

import hashlib
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from transformers import PreTrainedTokenizerBase

from kdcli.config.schema import BenchmarkConfig, DistillConfig, EvalConfig
from kdcli.data.rows import read_rows
from kdcli.data.templates import check_template, choose_template, render, template_digest
from kdcli.data.tokenize import Example, TokenDataset
from kdcli.errors import InputError, IntegrityError, UsageError
from kdcli.evaluation import scoring
from kdcli.evaluation.answer_sources import LocalAnswers, ServedAnswers, served_by
from kdcli.evaluation.answers import AnswerKey, AnswerStore, TextSamples, answer, remove_leftovers
from kdcli.evaluation.classification import score_choices
from kdcli.evaluation.edge import ExtraMeasurements, asks_extra_measurements, load_extra_tools, measure_extras
from kdcli.evaluation.lm_eval.tasks import asked_of
from kdcli.evaluation.on_policy import DecoderPair, check_on_policy, live_teacher, score_on_policy
from kdcli.evaluation.predictions import read_predictions
from kdcli.evaluation.protocol import protocol_of, samples_note
from kdcli.evaluation.records import AnswerCounts, EvalRecord
from kdcli.evaluation.results import RESULTS, Rows, make_place, read_results, write_results
from kdcli.evaluation.run_access import exclusive
from kdcli.evaluation.scoring import MetricSet, Scores
from kdcli.evaluation.together import beside, holds, only, place_of
from kdcli.events import Event, Report, silent
from kdcli.loading import splits
from kdcli.loading.info import ModelInfo, model_of
from kdcli.loading.session import Session, check_data_path, evaluation_digest
from kdcli.loading.splits import choice_note
from kdcli.metrics.describe import describe
from kdcli.models.devices import Device, prepare
from kdcli.models.load import LanguageModel, load_model
from kdcli.models.tokenizer import answer_key, difference, shared_vocabulary
from kdcli.remote.address import is_url
from kdcli.remote.client import Client
from kdcli.statistics import over_examples
from kdcli.storage import atomic
from kdcli.storage.run_dir import RunFolder
from kdcli.teachers.load import evaluation_teacher

# From what was measured to the record that is handed back and kept.


@dataclass(frozen=True)
class Measured:
    """One evaluation's findings.

    Args:
        name: of the test set.
        model: what was measured.
        model_digest: sha256 that identifies it.
        folder: where to keep the record; None keeps nothing.
        protocol: everything but the model that the numbers follow from.
        scored: scores and curves.
        rows: per-example values.
        notes: sentences a reader of the numbers needs.
        beside: benchmarks, and what the model costs.
    """

    name: str
    model: str
    model_digest: str
    folder: Path | None
    protocol: dict[str, Any]
    scored: Scores
    rows: Rows
    notes: tuple[str, ...]
    beside: ExtraMeasurements = field(default_factory=ExtraMeasurements)


def write_record(measured: Measured, config: EvalConfig) -> EvalRecord:
    """Make the record of what was measured, and write it if there is a place for it."""
    pairs = scoring.each_once(measured.scored.pairs)
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
        notes=tuple(dict.fromkeys([*measured.notes, *said, *measured.scored.notes])),
        curves=measured.scored.curves,
        answers=_counts(measured, config),
    )
    record = measured.beside.join(record)
    if measured.folder is not None:
        scores = [score for score, _ in pairs]
        make_place(measured.folder, config.output)
        write_results(measured.folder, record, config.evaluation, measured.rows, scores, pictures=config.pictures)
    return record


def _counts(measured: Measured, config: EvalConfig) -> AnswerCounts | None:
    texts = measured.rows.texts
    if texts is None:
        return None
    most = config.evaluation.generation.max_new_tokens if measured.protocol["generation"] is not None else None
    return scoring.answer_counts(texts, most)


# Evaluates a model that only a server holds: texts are scored, no weight and no tokenizer is needed.


_SPLITS = ("test", "validation", "valid", "dev", "eval")


def with_model_name(config: EvalConfig) -> EvalConfig:
    """Return settings that name the server's model, which the server is asked for where they leave it open.

    Raises:
        KDError: SERVE-01 to SERVE-08.
    """
    if config.server.url is None or config.server.model is not None:
        return config
    server = config.server.model_copy(update={"model": Client(config.server).model()})
    return config.model_copy(update={"server": server})


def score_served(config: EvalConfig, report: Report) -> EvalRecord:
    """Evaluate what a server answers.

    Args:
        config: the server, rows and metrics; no model folder.
        report: called with progress events.

    Raises:
        UsageError: a metric that needs weights, or no metric of texts.
        InputError: rows that cannot be used.
        KDError: a server that fails; its replies are stored next to ``output``.
    """
    chosen = scoring.choose_metrics(config.evaluation, teacher=False, model=False)
    if not chosen.texts:
        raise UsageError("EVAL-01", "no metric of texts", where="--metric", fix="give one, such as rougeL")
    path = check_data_path(config.data.eval or config.data.train, "--data")
    data = _rows(config, path)
    generation = config.evaluation.generation
    source = ServedAnswers(config.server, generation)
    for note in (*data.notes, *chosen.notes):
        report(Event("note", note))
    folder = Path(config.output) if config.output is not None else None
    if folder is not None:
        make_place(folder, config.output)
    kept = AnswerStore(folder, AnswerKey(source.identity, generation)) if folder is not None else None
    texts = answer(source, data, generation, report, kept)
    protocol: dict[str, Any] = {
        **protocol_of(config).record(),
        "server": source.identity,
        "template": data.template,
        "data": evaluation_digest(data),
        "examples": len(data),
        "metrics": {metric.name: metric.signature for metric in chosen.all},
        "generation": generation.model_dump(mode="json"),
        "teacher": None,
    }
    rows = Rows([example.where for example in data.examples], texts, kept)
    digest, name = hashlib.sha256(source.identity.encode()).hexdigest(), splits.evaluation_name(path)
    scored = scoring.score_texts(chosen, texts)
    return write_record(Measured(name, source.identity, digest, folder, protocol, scored, rows, chosen.notes), config)


def _rows(config: EvalConfig, path: str) -> TokenDataset:
    """Read rows and put them into their template; without a tokenizer there are no tokens and no chat template."""
    check_template(config.data.template)
    found = read_rows(path, config.data, limit=config.data.eval_limit, splits=_SPLITS)
    nobody = PreTrainedTokenizerBase()
    examples = []
    for row in found.rows:
        prompt, _ = render(row, config.data.template, nobody)
        if not prompt.strip():
            fix = "give rows with prompts, or the model's folder"
            raise InputError("SERVE-09", "a server cannot be asked without a prompt", where=row.where, fix=fix)
        examples.append(Example((), 0, prompt, row.responses, row.where))
    names = [choose_template(row, config.data.template, nobody) for row in found.rows]
    return TokenDataset(tuple(examples), found.notes, found.digest, template_digest(names, nobody))


ENDINGS = "text"
"""Where a record's protocol says which tokens end answers, and which of their tokens are no words."""


def evaluate_run(
    config: EvalConfig, report: Report, *, session: Session | None = None, reuse: bool = False
) -> EvalRecord:
    """Evaluate a run, a model or a file of answers.

    Args:
        config: what to measure, and on what.
        report: called with events.
        session: parts shared with other evaluations.
        reuse: return what is there if it was measured by the same protocol.

    Returns:
        the record; its folder is ``output``, or ``eval/<name>`` of a run folder, or None.

    Raises:
        UsageError: nothing to measure, or a metric that needs what is not there.
        InputError: model or data that cannot be used.
    """
    if config.predictions is not None:
        return _score_predictions(config, report)
    config = with_model_name(config)
    if config.model is None and config.server.url is not None:
        return score_served(config, report)
    if config.model is None:
        raise UsageError("CLI-20", "nothing to evaluate", where="kd eval", fix="give a model, a run, or --predictions")
    if asks_extra_measurements(config) and config.data.eval is None and config.data.train is None:
        return _score_beside(config, config.model, report)
    return _score_model(config, config.model, report, session or Session(), reuse=reuse)


def evaluate_student(run: Path, config: DistillConfig, session: Session, report: Report) -> EvalRecord:
    """Evaluate a run's student on the run's held-out rows, or its development rows, unless that is done."""
    return evaluate_run(student_config(str(run), config), report, session=session, reuse=True)


@dataclass(frozen=True)
class Subject:
    """A model to be measured that is no run's student: what identifies it, whose tokens it reads, and its weights.

    Args:
        facts: what is known of it before its weights are loaded.
        reader: the model whose tokenizer and template read the rows.
        load: gives the model on a device.
    """

    facts: ModelInfo
    reader: ModelInfo
    load: Callable[[Device], LanguageModel]


def evaluate_subject(subject: Subject, config: EvalConfig, session: Session, report: Report) -> EvalRecord:
    """Evaluate a model on the rows that settings name, unless that is done by the same protocol; again if damaged.

    Args:
        subject: the model.
        config: what to measure, and on what; ``output`` is the folder of the record.
        session: what is loaded already.
        report: called with events.

    Raises:
        KDError: the model or the data cannot be used, or do not fit a metric.
    """
    asked = _ask(config, subject.facts.path, session, subject)
    try:
        there = asked.already_there()
    except IntegrityError as error:
        report(Event("warning", f"{error.where} {error.what}: measured again"))
        there = None
    if there is not None:
        if asked.folder is not None:
            remove_leftovers(asked.folder)
        return there
    return _score_asked(config, subject.facts.path, asked, report, session)


def find_evaluation(run: Path, config: DistillConfig, session: Session) -> EvalRecord | None:
    """Return a run's evaluation if it was made by the protocol that these settings ask for, else None."""
    asked = _ask(student_config(str(run), config), str(run), session)
    return asked.already_there()


@dataclass(frozen=True)
class _Asked:
    """An evaluation, its parts checked; no weight is read."""

    chosen: MetricSet
    subject: Subject
    teacher: ModelInfo | None
    data: TokenDataset
    device: Device
    protocol: dict[str, Any]
    folder: Path | None
    name: str
    development: TokenDataset | None = None

    @property
    def facts(self) -> ModelInfo:
        """What is known of the model before its weights are loaded."""
        return self.subject.facts

    def already_there(self) -> EvalRecord | None:
        """Return what was measured before by the same protocol."""
        if self.folder is None or not (self.folder / RESULTS).is_file():
            return None
        there = read_results(self.folder)
        same = there.model_digest == self.facts.digest and holds(there.protocol, self.protocol)
        return only(there, self.protocol) if same else None


def student_config(model: str, config: DistillConfig) -> EvalConfig:
    """Return the settings by which a run's student is measured, for any model.

    Args:
        model: run or model folder.
        config: the run's settings.
    """
    return EvalConfig(
        model=model,
        teacher=config.teacher,
        teacher_cache=config.teacher_cache,
        teacher_quantization=config.teacher_quantization,
        data=config.data,
        hardware=config.hardware,
        evaluation=config.evaluation,
        benchmarks=config.benchmarks if config.evaluation.split == "test" else BenchmarkConfig(),
        pictures=False,
    )


def _ask(
    config: EvalConfig, model: str, session: Session, subject: Subject | None = None, report: Report = silent
) -> _Asked:
    fitted_on = splits.has_development_apart(config.data, config.evaluation.split)
    own = Session()  # not the shared one: a run's student may have changed since
    apart = _has_other_tokens(config, lambda: subject.reader if subject is not None else own.inspect(model), session)
    compared = config.teacher is not None and not apart
    chosen = scoring.choose_metrics(config.evaluation, teacher=compared, development=fitted_on, other_tokens=apart)
    path = splits.check_measured(config.data, config.evaluation.split)
    device = prepare(config.hardware)
    teacher = config.teacher if chosen.needs_teacher else None
    folder, given = _folder(config, model), subject is not None
    subject = subject or _subject(own.inspect(model))
    reader = subject.reader
    other = session.look_teacher(teacher, config.teacher_quantization) if teacher else None
    data = splits.measured_rows(config.data, config.evaluation.split, reader, session)
    chosen = scoring.without_prompts(chosen, config.evaluation, data)
    protocol = _protocol(config, chosen, data, device, reader, other)
    development = splits.measured_rows(config.data, "dev", reader, session) if chosen.needs_development else None
    if development is not None:
        protocol["development"] = evaluation_digest(development)
    if config.benchmarks.tasks:
        protocol["benchmarks"] = asked_of(config.benchmarks)
    name = splits.evaluation_name(path) if config.evaluation.split == "test" else splits.DEV
    if folder is not None and not given:
        folder = place_of(folder, protocol, subject.facts.digest, _there, report)
    return _Asked(chosen, subject, other, data, device, protocol, folder, name, development)


def _there(folder: Path) -> EvalRecord | None:
    return read_results(folder) if (folder / RESULTS).is_file() else None


def _subject(facts: ModelInfo) -> Subject:
    """Return a model that reads its own tokens and lies in a folder."""
    return Subject(facts, facts, lambda device: load_model(model_of(facts.path), device=device.device, role="teacher"))


def _has_other_tokens(config: EvalConfig, reader: Callable[[], ModelInfo], session: Session) -> bool:
    """Whether a metric asks for the teacher, and the teacher's tokenizer is not the model's."""
    asked = any(describe(name).needs_teacher for name in config.evaluation.metrics)
    if config.teacher is None or is_url(config.teacher) or not asked:
        return False
    return difference(reader().tokenizer, session.inspect(config.teacher).tokenizer) is not None


def _score_beside(config: EvalConfig, model: str, report: Report) -> EvalRecord:
    """Run benchmarks, or measure what the model costs; no row is read."""
    facts, device, ready = Session().inspect(model), prepare(config.hardware), load_extra_tools(config)
    beside = measure_extras(config, model, device, report, ready)
    protocol = {"examples": beside.benchmarked.documents, "precision": str(device.compute).removeprefix("torch.")}
    folder = Path(config.output) if config.output is not None else None
    name = "tasks" if config.benchmarks.tasks else "edge"
    return write_record(
        Measured(name, model, facts.digest, folder, protocol, Scores(), Rows([], None), (), beside), config
    )


def _score_model(config: EvalConfig, model: str, report: Report, session: Session, *, reuse: bool) -> EvalRecord:
    asked = _ask(config, model, session, report=report)
    shown = asked.folder is not None and asked.folder.is_dir() and not os.access(asked.folder.parent, os.W_OK)
    if (reuse or shown) and (there := asked.already_there()) is not None:
        if not reuse:
            report(Event("note", f"{asked.folder} may not be written: what was measured before is shown"))
        return there
    return _score_asked(config, model, asked, report, session)


def _score_asked(config: EvalConfig, model: str, asked: _Asked, report: Report, session: Session) -> EvalRecord:
    ready = load_extra_tools(config)
    writes = asked.protocol["generation"] is not None
    told = asked.facts.writing_notes if writes else asked.facts.notes
    choice = choice_note(model, asked.name)
    if choice:
        report(Event("warning", choice))
    said = (*asked.chosen.notes, *((choice,) if choice else ()))
    for note in (*told, *asked.data.notes, *asked.chosen.notes):
        report(Event("note", note))
    inside = asked.folder is not None and config.output is None
    with exclusive(Path(model)) if inside else nullcontext():
        beside = measure_extras(config, model, asked.device, report, ready)
        scored, texts, kept = _measure(config, asked, report, session)
        examples = Rows([example.where for example in asked.data.examples], texts, kept)
        measured = Measured(
            asked.name, model, asked.facts.digest, asked.folder, asked.protocol, scored, examples, said,
            beside,
        )  # fmt: skip
        return write_record(measured, config)


_Measurement: TypeAlias = tuple[Scores, TextSamples | None, AnswerStore | None]


def _measure(config: EvalConfig, asked: _Asked, report: Report, session: Session) -> _Measurement:
    """Load what is needed, ask, and score."""
    facts, other, data, chosen = asked.facts, asked.teacher, asked.data, asked.chosen
    against = other or asked.subject.reader
    vocab = shared_vocabulary(facts.tokenizer, against.tokenizer, facts.rows, against.rows)
    device = asked.device
    student = replace(asked.subject.load(device), vocab=vocab)
    student.check_length(max(data.lengths))
    teacher = decoders = None
    if other is not None and any(metric.needs_teacher() for metric in chosen.tokens):
        teacher = evaluation_teacher(config.teacher_cache, other, data, config.data, config.hardware, device, session)
    if chosen.own:
        living = live_teacher(chosen.own, other, config, vocab, device, session, report)
        settings = config.evaluation
        decoders = DecoderPair(student, living, settings.generation, settings.draft_tokens, device, report)
        check_on_policy(chosen.own, data, decoders)
    texts, kept = _answers(config, asked, student, report)
    ends = asked.subject.reader.ends
    scored = scoring.score_texts(chosen, scoring.beside(texts, data, ends)) if texts else Scores()
    scored += scoring.score_tokens(chosen, student, teacher, data, device, report, asked.development)
    scored += score_choices(chosen.choices, student, data, asked.development, device, report)
    if decoders is not None:
        scored += score_on_policy(chosen.own, data, decoders, texts.answers if texts else None)
    return scored, texts, kept


def _answers(
    config: EvalConfig, asked: _Asked, student: LanguageModel, report: Report
) -> tuple[TextSamples | None, AnswerStore | None]:
    """Let the model answer, where a metric reads its answers; answers stored before are used again."""
    if not asked.chosen.texts and not any("student" in metric.samplers for metric in asked.chosen.own):
        return None, None
    generation = config.evaluation.generation
    served = config.server.url is not None
    source = ServedAnswers(config.server, generation) if served else LocalAnswers(student, generation, asked.device)
    if asked.folder is not None:
        make_place(asked.folder, config.output)
    kept, base = None, _folder(config, asked.facts.path)
    if asked.folder is not None:
        others = [] if base is None else [base, *beside(base)]
        kept = AnswerStore(asked.folder, AnswerKey(source.identity, generation), others)
    texts = answer(source, asked.data, generation, report, kept)
    return replace(texts, answers=None) if served else texts, kept


def _score_predictions(config: EvalConfig, report: Report) -> EvalRecord:
    chosen = scoring.choose_metrics(config.evaluation, teacher=False, model=False)
    if not chosen.texts:
        raise UsageError("EVAL-01", "no metric of texts", where="--metric", fix="give one, such as rougeL")
    path = Path(str(config.predictions))
    texts, where = read_predictions(path, need_references=any(metric.needs_references for metric in chosen.texts))
    protocol_notes = samples_note(config, len(texts.predictions[0]))
    for note in (*chosen.notes, *protocol_notes):
        report(Event("note", note))
    digest = atomic.digest_file(path)
    metrics = {metric.name: metric.signature for metric in chosen.all}
    protocol = {"data": digest, "examples": len(where), "metrics": metrics, "generation": None, "teacher": None}
    protocol |= protocol_of(config).record()
    folder = Path(config.output) if config.output else None
    scored, rows = scoring.score_texts(chosen, texts), Rows(where, texts)
    name = splits.evaluation_name(str(path))
    if folder is not None:
        folder = place_of(folder, protocol, digest, _there, report)
    return write_record(
        Measured(name, str(path), digest, folder, protocol, scored, rows, (*chosen.notes, *protocol_notes)), config
    )


def _protocol(
    config: EvalConfig,
    chosen: MetricSet,
    data: TokenDataset,
    device: Device,
    model: ModelInfo,
    teacher: ModelInfo | None,
) -> dict[str, Any]:
    """Return everything but the model that the scores depend on."""
    generation = config.evaluation.generation.model_dump(mode="json")
    return {
        **protocol_of(config).record(),
        **served_by(config.server),
        "template": data.template,
        "data": evaluation_digest(data),
        "examples": len(data),
        "metrics": {metric.name: metric.signature for metric in chosen.all},
        "generation": generation if chosen.texts or chosen.own else None,
        "teacher": teacher.digest if teacher else None,
        "precision": str(device.compute).removeprefix("torch."),
        ENDINGS: answer_key(model.tokenizer, model.ends),
    }


def _folder(config: EvalConfig, model: str) -> Path | None:
    if config.output is not None:
        return Path(config.output)
    run = Path(model)
    return run / splits.evaluation_folder(config.data, config.evaluation.split) if RunFolder(run).is_run else None
