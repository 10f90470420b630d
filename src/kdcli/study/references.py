"""Reference lines of a comparison: the student before training, and the teacher, measured once on the same rows."""

import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from kdcli.classifiers.logistic import fit_logistic, logistic_digest
from kdcli.classifiers.model import ClassReader
from kdcli.comparison.records import Failure
from kdcli.config.schema import EvalConfig
from kdcli.config.sections import BenchmarkConfig
from kdcli.distill.fingerprint import short_hash
from kdcli.distill.prepare import Prepared
from kdcli.distill.records import BEFORE, MODEL, TEACHER, Reference
from kdcli.errors import InputError, InterruptedRunError, KDError, MachineError, UsageError, explained
from kdcli.evaluation.evaluate import evaluate_subject
from kdcli.evaluation.prepare import Subject
from kdcli.evaluation.records import EvalRecord
from kdcli.evaluation.results import RESULTS, read_results, read_samples
from kdcli.events import Event, Report
from kdcli.loading.info import ModelInfo, ModelPair
from kdcli.loading.session import Session, load_measured
from kdcli.metrics.describe import MetricCard, describe
from kdcli.models.adapters import NONE
from kdcli.models.devices import Device, prepare
from kdcli.models.load import LanguageModel
from kdcli.models.tokenizer import difference
from kdcli.registry import plugins
from kdcli.storage import atomic
from kdcli.storage.run_dir import REFERENCES
from kdcli.study.study_dir import ReferenceEntry
from kdcli.teachers.class_view import class_reader

_NOT_POSSIBLE = (UsageError.exit_code, InputError.exit_code)
"""Exit codes of what no other start would mend: the model does not go with the rows or the metrics."""

Load: TypeAlias = Callable[[Device], LanguageModel]
LOGISTIC = "logistic regression"
"""The label of a regression on word counts, beside students that classify texts."""
LABELS = {BEFORE: "student, before", TEACHER: "teacher"}


@dataclass(frozen=True)
class Measurement:
    """One evaluation of a reference model, to be made or made already.

    Args:
        role: as in ``Reference``.
        label: as in ``Reference``.
        seed: of a student made at random; None for a model that lies in a folder.
        folder: of the evaluation, relative to the study.
        subject: the model.
        config: what is measured; its output is not set.
    """

    role: str
    label: str
    seed: int | None
    folder: str
    subject: Subject
    config: EvalConfig


@dataclass(frozen=True)
class Planned:
    """Which reference models a comparison measures.

    Args:
        measurements: one for each evaluation.
        remarks: a sentence for each line that cannot be had, in whole or in part.
    """

    measurements: tuple[Measurement, ...] = ()
    remarks: tuple[str, ...] = ()


@dataclass
class Measured:
    """Reference models as far as they were measured.

    Args:
        references: the lines.
        remarks: a sentence for each line that cannot be had, in whole or in part.
        failed: what went wrong on the way, as cells fail: another start may do better.
        lost: label -> the first of the remarks that are about it.
    """

    references: list[Reference] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    lost: dict[str, str] = field(default_factory=dict)

    def leave_out(self, label: str, why: str) -> None:
        """Remark that a line cannot be had, in whole or in part."""
        self.remarks.append(f"no line for {label}: {why}")
        self.lost.setdefault(label, self.remarks[-1])


def plan_references(students: Mapping[str, Prepared], seeds: Sequence[int], session: Session) -> Planned:
    """Say which reference models can be measured for a study, and how; no weight is read.

    Args:
        students: label of a student before training -> any of the runs that begin with it, as measured last.
        seeds: training seeds of the study.
        session: what is loaded already.
    """
    plans = [
        plan_lines(one.measuring, one.pair, seeds, session, label)
        for label, one in students.items()
        if one.test is not None
    ]
    measurements = [one for plan in plans for one in plan.measurements if one.role == BEFORE]
    measurements += [one for plan in plans[:1] for one in plan.measurements if one.role != BEFORE]
    first = next((one for one in students.values() if one.test is not None and one.pair.classifies), None)
    measurements += [_logistic(first)] if first is not None else []
    return Planned(tuple(measurements), tuple(dict.fromkeys(remark for plan in plans for remark in plan.remarks)))


def _logistic(run: Prepared) -> Measurement:
    """Return a logistic regression that is fitted on a run's training rows, measured as its student is."""
    rows, labels = run.dataset, run.dataset.labels
    facts = replace(run.pair.reader, path=LOGISTIC, digest=logistic_digest(rows.digest), parameters=0)

    def load(device: Device) -> ClassReader:
        return fit_logistic([one.prompt for one in rows.examples], [one.ids[-1] for one in rows.examples], labels)

    subject = Subject(facts, run.pair.reader, _in_folder(facts), load)
    measured = run.measuring.model_copy(update={"model": LOGISTIC, "benchmarks": BenchmarkConfig()})
    return Measurement(MODEL, LOGISTIC, None, f"{REFERENCES}/logistic", subject, measured)


def start_label(student: str) -> str:
    """Return what the line of a student before training is called where several students are compared.

    >>> start_label("cut:layers=2")
    'student, before [cut:layers=2]'
    """
    return f"{LABELS[BEFORE]} [{student}]"


def plan_lines(
    measuring: EvalConfig, pair: ModelPair, seeds: Sequence[int], session: Session, label: str = LABELS[BEFORE]
) -> Planned:
    """Say the same for models.

    Args:
        measuring: how the students are measured.
        pair: student and teacher.
        seeds: training seeds, for a student made at random.
        session: what is loaded already.
        label: of the student before training.
    """
    several = seeds if pair.student_is_random else [None]
    before = [_before(measuring, pair, seed, session, label) for seed in several]
    teacher, why = _teacher(measuring, pair, session)
    return Planned((*before, *([teacher] if teacher is not None else [])), (why,) if why else ())


def measure_references(planned: Planned, study: Path, beside: EvalRecord, session: Session, report: Report) -> Measured:
    """Measure what is missing of the reference models; one that cannot be measured stops nothing.

    Args:
        planned: what to measure.
        study: folder under which the evaluations are kept.
        beside: the evaluation of any of the study's students: other lines must be of the same rows.
        session: what is loaded already.
        report: called with events.

    Raises:
        InterruptedRunError: stopped by a signal.
    """
    done = Measured(remarks=list(planned.remarks))
    lines: dict[tuple[str, str], dict[int | None, EvalRecord]] = {}
    sizes: dict[tuple[str, str], int] = {}
    for one in planned.measurements:
        key = (one.role, one.label)
        try:
            config = _reduced(one, beside).model_copy(update={"output": str(study / one.folder)})
            _check_precision(config, beside)
            found = evaluate_subject(one.subject, config, session, _named(report, one))
            with suppress(MachineError):  # an earlier failure's story, on a disk that may be read only
                atomic.remove_file(_log(one, study))
            if why := _other_rows(found, beside):
                done.leave_out(one.label, why)
                continue
        except InterruptedRunError:
            raise
        except Exception as error:  # a line that cannot be had must not cost the table
            known = explained(error) or plugins.blamed(error)
            if known is not None and known.exit_code in _NOT_POSSIBLE:
                done.leave_out(one.label, known.what)
            else:
                done.failed.append(_failure(one, error, known, study))
            report(Event("warning", f"no line for {one.label}: {known.what if known is not None else error}"))
            continue
        lines.setdefault(key, {})[one.seed] = found
        sizes[key] = one.subject.facts.parameters
    done.references = [
        Reference(role, label, found, sizes[role, label] or None) for (role, label), found in lines.items()
    ]
    return done


def plan_model(path: str, label: str, measuring: EvalConfig, pair: ModelPair) -> Measurement:
    """Return how a model that was trained elsewhere is measured as the students of a comparison are.

    Args:
        path: its folder.
        label: what its line is called.
        measuring: how the students are measured.
        pair: student, which reads the rows, and teacher; a model is not compared with itself.

    Raises:
        InputError: the folder cannot be used.
    """
    facts, reader = Session(exports=True).inspect(path), pair.reader
    measured, metrics = measuring.model_copy(update={"model": path}), measuring.evaluation.metrics
    apart = difference(facts.tokenizer, reader.tokenizer) is not None
    if apart or (pair.teacher is not None and facts.digest == pair.teacher.digest):
        kept = tuple(
            name
            for name in metrics
            if not describe(name).needs_teacher
            and not (apart and describe(name).input_kind not in ("texts", "choices"))
        )
        evaluation = measuring.evaluation.model_copy(update={"metrics": kept})
        measured = measured.model_copy(update={"evaluation": evaluation, "teacher": None})
        reader = facts if apart else reader
    return Measurement(MODEL, label, None, "", Subject(facts, reader, _in_folder(facts)), measured)


def read_references(study: Path, entries: Sequence[ReferenceEntry]) -> list[Reference]:
    """Return the reference lines that a study's folder holds.

    Args:
        study: its folder.
        entries: what it lists.
    """
    lines: dict[tuple[str, str], dict[int | None, EvalRecord]] = {}
    for one in entries:
        if (study / one.folder / RESULTS).is_file():
            lines.setdefault((one.role, one.label), {})[one.seed] = read_results(study / one.folder)
    return [Reference(role, label, found) for (role, label), found in lines.items()]


def _before(measuring: EvalConfig, pair: ModelPair, seed: int | None, session: Session, label: str) -> Measurement:
    """Return the student before training, measured as every student is after it."""
    measured = measuring.model_copy(update={"model": pair.student})
    name = BEFORE if label == LABELS[BEFORE] else f"{BEFORE}-{short_hash({'student': pair.student})}"
    name += "" if seed is None else f"-s{seed}"
    subject = Subject(pair.reader, pair.reader, _in_folder(pair.reader), _classes_before(pair, seed, session))
    if pair.student_is_made or pair.student_is_random:
        digest = pair.student_identity if seed is None else f"{pair.student} seed {seed}"
        facts = replace(pair.reader, path=pair.student, digest=digest, parameters=0)
        subject = Subject(facts, pair.reader, _on_the_spot(pair, seed or 0, session), subject.classes)
        measured = measured.model_copy(update={"benchmarks": BenchmarkConfig()})
    return Measurement(BEFORE, label, seed, f"{REFERENCES}/{name}", subject, measured)


def _classes_before(pair: ModelPair, seed: int | None, session: Session) -> Callable[[Device], ClassReader] | None:
    """Return what reads the classes of texts as a student does before training; None for a language model."""
    if not pair.classifies:
        return None

    def load(device: Device) -> ClassReader:
        student: Any = session.load_student(pair, seed=seed or 0, device=device.device)
        return student

    return load


def _teacher(measuring: EvalConfig, pair: ModelPair, session: Session) -> tuple[Measurement | None, str]:
    """Return the teacher as it is read in training, or why there is no line for it, or no number in some columns."""
    facts = pair.teacher
    if facts is None:
        return None, "no line for the teacher: none was named"
    if facts.server is not None:
        why = "it is behind a server, and only its answers can be measured, with kd eval --server-url"
        return None, f"no line for the teacher: {why}"
    if facts.blend is not None:
        return None, "no line for the teacher: it is an ensemble, and no single model gives its distribution"
    cards = [(name, describe(name)) for name in measuring.evaluation.metrics]
    apart = pair.teacher_vocab is not None
    kept = tuple(name for name, card in cards if not card.needs_teacher and not (apart and _is_per_token(card)))
    if not kept:
        return None, "no line for the teacher: every score compares with it" + " or is per token" * apart
    said = ""
    if apart and any(_is_per_token(card) and not card.needs_teacher for _, card in cards):
        said = (
            f"the {pair.difference}: scores per token are of other tokens for the teacher, and left empty in its line"
        )
    changes = {
        "model": facts.path,
        "teacher": None,
        "teacher_cache": None,
        "evaluation": measuring.evaluation.model_copy(update={"metrics": kept}),
        **({"benchmarks": BenchmarkConfig()} if facts.quantization != NONE else {}),
    }
    reader = facts if apart else pair.reader

    def load(device: Device) -> LanguageModel:
        return session.load_teacher(facts.path, device.device, facts.quantization)

    def read(device: Device) -> ClassReader:
        return class_reader(facts, pair.reader.labels or (), measuring.data, device, session)

    measured = measuring.model_copy(update=changes)
    subject = Subject(facts, reader, load, read if pair.classifies else None)
    return Measurement(TEACHER, LABELS[TEACHER], None, f"{REFERENCES}/{TEACHER}", subject, measured), said


def _reduced(one: Measurement, beside: EvalRecord) -> EvalConfig:
    """Return the settings without the metrics that the students' evaluation left out."""
    if one.role == BEFORE:
        return one.config
    known, evaluation = {info.metric for info in beside.infos}, one.config.evaluation
    kept = tuple(name for name in evaluation.metrics if describe(name).name in known)
    return one.config.model_copy(update={"evaluation": evaluation.model_copy(update={"metrics": kept})})


def _is_per_token(card: MetricCard) -> bool:
    return card.input_kind == "tokens"


def _in_folder(facts: ModelInfo) -> Load:
    return lambda device: load_measured(facts.path, device.device)


def _on_the_spot(pair: ModelPair, seed: int, session: Session) -> Load:
    def load(device: Device) -> LanguageModel:
        student = session.load_student(pair, seed=seed, device=device.device)
        student.model.requires_grad_(False)
        return student

    return load


def _other_rows(found: EvalRecord, beside: EvalRecord) -> str:
    """Say how the rows of two evaluations differ; empty where they are the same, whatever their file is called now."""
    if found.protocol.get("data") == beside.protocol.get("data"):
        return ""
    ours, theirs = (_rows(record) for record in (found, beside))
    if ours != theirs:
        return f"its {len(ours):,} rows are not the {len(theirs):,} that the students were measured on"
    return ""


def _rows(record: EvalRecord) -> list[Any]:
    """Return what tells rows apart for a model of another tokenizer: their references, else file and line."""
    assert record.folder is not None, "it was written"
    table = read_samples(record.folder)
    return table["references" if "references" in table.column_names else "where"].to_pylist()


def _check_precision(config: EvalConfig, beside: EvalRecord) -> None:
    """Refuse to measure where it would be done in another precision, as on a machine without the students' device."""
    here, there = str(prepare(config.hardware).compute).removeprefix("torch."), beside.protocol.get("precision")
    if here != there:
        what = f"it would be measured in {here} here, and the students were in {there}"
        raise InputError("CMP-07", what, where="hardware", fix="run it again on a machine like those of the runs")


def _failure(one: Measurement, error: Exception, known: KDError | None, study: Path) -> Failure:
    """Return what went wrong, and write the traceback next to the evaluation's folder."""
    log = _log(one, study)
    log.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_file(log, "".join(traceback.format_exception(error)))
    message = str(known) if known is not None else f"{type(error).__name__}: {error}"
    return Failure(one.label, one.seed or 0, message, log, known.exit_code if known is not None else 1)


def _log(one: Measurement, study: Path) -> Path:
    return (study / one.folder).with_suffix(".log")


def _named(report: Report, one: Measurement) -> Report:
    """Return a report that puts the line's name before what happens in it."""

    def tell(event: Event) -> None:
        if event.kind != "note":
            report(replace(event, message=f"{one.label}: {event.message}"))

    return tell
