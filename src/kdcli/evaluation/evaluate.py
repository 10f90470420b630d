"""``kd eval``: evaluates a model folder, a run, or answers made elsewhere."""

import hashlib
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from transformers import PreTrainedTokenizerBase

from kdcli.classifiers.model import ClassReader
from kdcli.config.schema import EvalConfig
from kdcli.config.sections import EvalSettings
from kdcli.data.rows import read_rows
from kdcli.data.templates import check_template, choose_template, render, template_digest
from kdcli.data.tokenize import Example, TokenDataset
from kdcli.errors import InputError, IntegrityError, UsageError
from kdcli.evaluation import scoring
from kdcli.evaluation.answer_sources import LocalAnswers, ServedAnswers
from kdcli.evaluation.answers import AnswerKey, AnswerStore, TextSamples, answer, remove_leftovers
from kdcli.evaluation.classes import score_classes, timing_note
from kdcli.evaluation.classification import score_choices
from kdcli.evaluation.edge import ExtraMeasurements, hardware_of, load_extra_tools, measure_extras
from kdcli.evaluation.on_policy import DecoderPair, check_on_policy, live_teacher, score_on_policy
from kdcli.evaluation.predictions import read_predictions
from kdcli.evaluation.prepare import (
    PreparedEvaluation,
    Subject,
    choice_note,
    prepare_evaluation,
    results_in,
    with_model_name,
)
from kdcli.evaluation.protocol import protocol_of, samples_note
from kdcli.evaluation.records import AnswerCounts, EvalRecord
from kdcli.evaluation.results import Rows, make_place, write_results
from kdcli.evaluation.run_access import exclusive
from kdcli.evaluation.scoring import Scores
from kdcli.evaluation.together import other_protocols, place_of
from kdcli.events import Event, Report
from kdcli.loading import splits
from kdcli.loading.session import Session, check_data_path, evaluation_digest
from kdcli.models.devices import Device, prepare
from kdcli.models.load import LanguageModel
from kdcli.models.tokenizer import shared_vocabulary
from kdcli.statistics import over_examples
from kdcli.storage import atomic
from kdcli.teachers.class_view import class_reader
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
        settings: options of metrics, and how answers are sampled.
        output: the folder as typed; None for the run's own.
        pictures: whether curves are drawn.
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
    settings: EvalSettings
    output: str | None
    pictures: bool
    protocol: dict[str, Any]
    scored: Scores
    rows: Rows
    notes: tuple[str, ...]
    beside: ExtraMeasurements = field(default_factory=ExtraMeasurements)


def write_record(measured: Measured) -> EvalRecord:
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
        answers=_counts(measured),
    )
    record = measured.beside.join(record)
    if measured.folder is not None:
        scores = [score for score, _ in pairs]
        make_place(measured.folder, measured.output)
        write_results(measured.folder, record, measured.settings, measured.rows, scores, pictures=measured.pictures)
    return record


def _counts(measured: Measured) -> AnswerCounts | None:
    texts = measured.rows.texts
    if texts is None:
        return None
    most = measured.settings.generation.max_new_tokens if measured.protocol["generation"] is not None else None
    return scoring.answer_counts(texts, most)


# Evaluates a model that only a server holds: texts are scored, no weight and no tokenizer is needed.


_SPLITS = ("test", "validation", "valid", "dev", "eval")


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
    return write_record(
        Measured(name, source.identity, digest, folder, *_kept(config), protocol, scored, rows, chosen.notes)
    )


def _kept(config: EvalConfig) -> tuple[EvalSettings, str | None, bool]:
    return config.evaluation, config.output, config.pictures


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
    if (config.edge.measure or config.benchmarks.tasks) and config.data.eval is None and config.data.train is None:
        return _score_beside(config, config.model, report)
    return _score_model(config, config.model, report, session or Session(), reuse=reuse)


def evaluate_student(run: Path, measuring: EvalConfig, session: Session, report: Report) -> EvalRecord:
    """Evaluate a run's student as the run has it, on held-out or development rows, unless that is done."""
    return evaluate_run(_of(run, measuring), report, session=session, reuse=True)


def _of(run: Path, measuring: EvalConfig) -> EvalConfig:
    return measuring.model_copy(update={"model": str(run)})


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
    asked = prepare_evaluation(config, subject.facts.path, session, subject)
    try:
        there = asked.already_there()
    except IntegrityError as error:
        report(Event("warning", f"{error.where} {error.what}: measured again"))
        there = None
    if there is not None:
        if asked.folder is not None:
            remove_leftovers(asked.folder)
        return there
    return _score(subject.facts.path, asked, report, session)


def find_evaluation(run: Path, measuring: EvalConfig, session: Session) -> EvalRecord | None:
    """Return a run's evaluation if it was made by the protocol that the run asks for, else None."""
    asked = prepare_evaluation(_of(run, measuring), str(run), session)
    return asked.already_there()


def _score_beside(config: EvalConfig, model: str, report: Report) -> EvalRecord:
    """Run benchmarks, or measure what the model costs; no row is read."""
    facts, device, ready = (
        Session(exports=True).inspect(model),
        prepare(config.hardware),
        load_extra_tools(config.benchmarks),
    )
    beside = measure_extras(config.edge, config.benchmarks, model, device, report, ready)
    protocol = {"examples": beside.benchmarked.documents, "precision": str(device.compute).removeprefix("torch.")}
    folder = Path(config.output) if config.output is not None else None
    name = "tasks" if config.benchmarks.tasks else "edge"
    return write_record(
        Measured(name, model, facts.digest, folder, *_kept(config), protocol, Scores(), Rows([], None), (), beside)
    )


def _score_model(config: EvalConfig, model: str, report: Report, session: Session, *, reuse: bool) -> EvalRecord:
    asked = prepare_evaluation(config, model, session, report=report)
    shown = asked.folder is not None and asked.folder.is_dir() and not os.access(asked.folder.parent, os.W_OK)
    if (reuse or shown) and (there := asked.already_there()) is not None:
        if not reuse:
            report(Event("note", f"{asked.folder} may not be written: what was measured before is shown"))
        return there
    return _score(model, asked, report, session)


def _score(model: str, asked: PreparedEvaluation, report: Report, session: Session) -> EvalRecord:
    ready = load_extra_tools(asked.benchmarks)
    writes = asked.protocol["generation"] is not None
    told = asked.facts.writing_notes if writes else asked.facts.notes
    choice = choice_note(model, asked.name)
    if choice:
        report(Event("warning", choice))
    said = (*asked.chosen.notes, *((choice,) if choice else ()))
    for note in (*told, *asked.data.notes, *asked.chosen.notes):
        report(Event("note", note))
    inside = asked.folder is not None and asked.output is None
    with exclusive(Path(model)) if inside else nullcontext():
        beside = ExtraMeasurements()
        if asked.subject.classes is None:
            beside = measure_extras(asked.edge, asked.benchmarks, model, asked.device, report, ready)
        scored, texts, kept = _measure(asked, report, session)
        examples = Rows([example.where for example in asked.data.examples], texts, kept)
        measured = Measured(
            asked.name, model, asked.facts.digest, asked.folder, asked.settings, asked.output, asked.pictures,
            asked.protocol, scored, examples, said, beside,
        )  # fmt: skip
        return write_record(measured)


_Measurement: TypeAlias = tuple[Scores, TextSamples | None, AnswerStore | None]


def _measure(asked: PreparedEvaluation, report: Report, session: Session) -> _Measurement:
    """Load what is needed, ask, and score."""
    if asked.subject.classes is not None:
        return _measure_classes(asked, asked.subject.classes, report, session), None, None
    facts, other, data, chosen = asked.facts, asked.teacher, asked.data, asked.chosen
    against = other or asked.subject.reader
    vocab = shared_vocabulary(facts.tokenizer, against.tokenizer, facts.rows, against.rows)
    device = asked.device
    student = replace(asked.subject.load(device), vocab=vocab)
    student.check_length(max(data.lengths))
    teacher = decoders = None
    if other is not None and any(metric.needs_teacher() for metric in chosen.tokens):
        teacher = evaluation_teacher(asked.teacher_cache, other, data, asked.rows, asked.hardware, device, session)
    if chosen.own:
        cached, settings = asked.teacher_cache is not None, asked.settings
        living = live_teacher(chosen.own, other, vocab, device, session, report, cached=cached)
        decoders = DecoderPair(student, living, settings.generation, settings.draft_tokens, device, report)
        positions = {one.path: one.positions for one in (student, living) if one is not None}
        check_on_policy(chosen.own, data, settings.generation.max_new_tokens, positions)
    texts, kept = _answers(asked, student, report)
    ends = asked.subject.reader.ends
    scored = scoring.score_texts(chosen, scoring.with_reference_tokens(texts, data, ends)) if texts else Scores()
    scored += scoring.score_tokens(chosen, student, teacher, data, device, report, asked.development)
    scored += score_choices(chosen.choices, student, data, asked.development, device, report)
    if decoders is not None:
        scored += score_on_policy(chosen.own, data, decoders, texts.answers if texts else None)
    return scored, texts, kept


def _measure_classes(
    asked: PreparedEvaluation, load: Callable[[Device], ClassReader], report: Report, session: Session
) -> Scores:
    reader, teacher, longest = load(asked.device), None, asked.rows.max_length
    if asked.teacher is not None:
        teacher = class_reader(asked.teacher, asked.data.labels, asked.rows, asked.device, session)
    found = score_classes(asked.chosen, reader, teacher, asked.data, asked.development, longest, report)
    if asked.edge.measure:
        said = timing_note(reader, asked.data, longest, asked.edge.repeats, hardware_of(asked.device))
        found = replace(found, notes=(*found.notes, said))
    return found


def _answers(
    asked: PreparedEvaluation, student: LanguageModel, report: Report
) -> tuple[TextSamples | None, AnswerStore | None]:
    """Let the model answer, where a metric reads its answers; answers stored before are used again."""
    if not asked.chosen.texts and not any("student" in metric.samplers for metric in asked.chosen.own):
        return None, None
    generation = asked.settings.generation
    served = asked.server.url is not None
    source = ServedAnswers(asked.server, generation) if served else LocalAnswers(student, generation, asked.device)
    kept = None
    if asked.folder is not None:
        make_place(asked.folder, asked.output)
        others = [] if asked.base is None else [asked.base, *other_protocols(asked.base)]
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
        folder = place_of(folder, protocol, digest, results_in, report)
    return write_record(
        Measured(
            name, str(path), digest, folder, *_kept(config), protocol, scored, rows, (*chosen.notes, *protocol_notes)
        )
    )
