"""Builds and checks the parts of an evaluation; no weight is read."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcli.classifiers.model import ClassReader
from kdcli.config import resolve
from kdcli.config.schema import DistillConfig, EvalConfig
from kdcli.config.sections import (
    BenchmarkConfig,
    DataConfig,
    EdgeConfig,
    EvalSettings,
    HardwareConfig,
    ServerConfig,
)
from kdcli.data.class_rows import check_label
from kdcli.data.tokenize import TokenDataset
from kdcli.errors import KDError
from kdcli.evaluation import scoring
from kdcli.evaluation.answer_sources import served_by
from kdcli.evaluation.classes import check_class_metrics, class_settings
from kdcli.evaluation.lm_eval.tasks import asked_of
from kdcli.evaluation.protocol import protocol_of
from kdcli.evaluation.records import EvalRecord
from kdcli.evaluation.results import RESULTS, read_results
from kdcli.evaluation.scoring import MetricSet
from kdcli.evaluation.together import holds, only, place_of
from kdcli.events import Report, silent
from kdcli.loading import splits
from kdcli.loading.info import ModelInfo, fault_of_images
from kdcli.loading.session import Session, evaluation_digest, load_class_reader, load_measured
from kdcli.loading.splits import evaluation_name, watches_held_out
from kdcli.metrics.describe import describe
from kdcli.models.devices import Device, prepare
from kdcli.models.load import LanguageModel
from kdcli.models.tokenizer import answer_key, difference
from kdcli.remote.address import is_url
from kdcli.remote.client import Client
from kdcli.storage.run_dir import BEST, CONFIG, MODEL, RunFolder
from kdcli.teachers.class_view import check_class_view
from kdcli.text import one_line

ENDINGS = "text"
"""Where a record's protocol says which tokens end answers, and which of their tokens are no words."""


@dataclass(frozen=True)
class Subject:
    """A model to be measured that is no run's student: what identifies it, whose tokens it reads, and its weights.

    Args:
        facts: what is known of it before its weights are loaded.
        reader: the model whose tokenizer and template read the rows.
        load: gives the model on a device.
        classes: gives what reads the classes of texts, where the rows have some; None for a language model.
    """

    facts: ModelInfo
    reader: ModelInfo
    load: Callable[[Device], LanguageModel]
    classes: Callable[[Device], ClassReader] | None = None


@dataclass(frozen=True)
class PreparedEvaluation:
    """An evaluation, its parts checked; no weight is read.

    Args:
        chosen: the metrics.
        subject: the model that is measured.
        teacher: what it is compared with, where a metric compares.
        data: the rows.
        device: where it computes.
        protocol: everything but the model that the numbers follow from.
        folder: of the record; None keeps nothing.
        base: the folder that was asked for, beside which evaluations by another protocol lie.
        name: of the rows.
        settings: options of metrics, and how answers are sampled.
        rows: where rows come from.
        hardware: devices and precision.
        server: what answers in the model's place, if its address is set.
        edge: whether size and speed are measured, and how.
        benchmarks: tasks of lm-evaluation-harness.
        teacher_cache: the teacher's cache, if one was named.
        output: the folder as typed; None for the run's own.
        pictures: whether curves are drawn.
        development: rows that temperatures are fitted on, where a metric needs them.
    """

    chosen: MetricSet
    subject: Subject
    teacher: ModelInfo | None
    data: TokenDataset
    device: Device
    protocol: dict[str, Any]
    folder: Path | None
    base: Path | None
    name: str
    settings: EvalSettings
    rows: DataConfig
    hardware: HardwareConfig
    server: ServerConfig
    edge: EdgeConfig
    benchmarks: BenchmarkConfig
    teacher_cache: str | None
    output: str | None
    pictures: bool
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


def prepare_evaluation(
    config: EvalConfig, model: str, session: Session, subject: Subject | None = None, report: Report = silent
) -> PreparedEvaluation:
    """Check everything about an evaluation that can be checked before weights are read.

    Args:
        config: what to measure, and on what.
        model: run or model folder, or what a subject is called.
        session: what is loaded already.
        subject: the model, where it is no run's student.
        report: called with events.

    Raises:
        UsageError: a metric that needs what is not there, or no rows.
        InputError: model or data that cannot be used.
    """
    fitted_on = splits.has_development_apart(config.data, config.evaluation.split)
    own = Session(exports=True)  # not the shared one: a run's student may have changed since
    known = subject.reader if subject is not None else own.inspect(model, classifiers=True)
    if known.labels is not None:
        config = config.model_copy(
            update={"evaluation": class_settings(config.evaluation, teacher=config.teacher is not None)}
        )
        check_class_metrics(config.evaluation)
    apart = known.labels is None and _has_other_tokens(config, known, session)
    compared = config.teacher is not None and not apart
    chosen = scoring.choose_metrics(config.evaluation, teacher=compared, development=fitted_on, other_tokens=apart)
    path = splits.check_measured(config.data, config.evaluation.split)
    device = prepare(config.hardware)
    teacher = config.teacher if chosen.needs_teacher else None
    base, given = _folder(config, model), subject is not None
    subject = subject or _subject(known)
    reader = subject.reader
    other = _teacher(config, teacher, reader, session) if teacher else None
    data = splits.measured_rows(config.data, config.evaluation.split, reader, session)
    chosen = scoring.without_prompts(chosen, config.evaluation, data)
    _check_images(config, chosen, data, reader, other)
    protocol = _protocol(config, chosen, data, device, reader, other)
    development = splits.measured_rows(config.data, "dev", reader, session) if chosen.needs_development else None
    if development is not None:
        protocol["development"] = evaluation_digest(development)
    if config.benchmarks.tasks:
        protocol["benchmarks"] = asked_of(config.benchmarks)
    name = splits.evaluation_name(path) if config.evaluation.split == "test" else splits.DEV
    folder = base
    if base is not None and not given:
        folder = place_of(base, protocol, subject.facts.digest, results_in, report)
    return PreparedEvaluation(
        chosen, subject, other, data, device, protocol, folder, base, name, config.evaluation, config.data,
        config.hardware, config.server, config.edge, config.benchmarks, config.teacher_cache, config.output,
        config.pictures, development,
    )  # fmt: skip


def _check_images(
    config: EvalConfig, chosen: MetricSet, data: TokenDataset, reader: ModelInfo, teacher: ModelInfo | None
) -> None:
    """Refuse what does not read the images of rows: a metric, a server that answers, a teacher."""
    if not data.with_images:
        return
    scoring.refuse_images(chosen, data)
    fault = fault_of_images(teacher, reader) if teacher is not None else None
    if fault is not None:
        raise UsageError("IMG-06", f"rows have images, and {fault[0]}", where="--teacher", fix=fault[1])
    if config.server.url is not None:
        what, fix = "rows have images, and a server is asked without them", "give the model's folder"
        raise UsageError("IMG-06", what, where="--server-url", fix=fix)


def results_in(folder: Path) -> EvalRecord | None:
    """Return the record in a folder, if there is one."""
    return read_results(folder) if (folder / RESULTS).is_file() else None


def _teacher(config: EvalConfig, teacher: str, reader: ModelInfo, session: Session) -> ModelInfo:
    """Return what identifies the teacher; one of classes must know those of the model."""
    if reader.labels is None:
        return session.inspect_teacher(teacher, config.teacher_quantization)
    found = session.inspect(teacher, classifiers=True)
    if found.labels is None:
        check_class_view(config.data, reader.labels)
        return session.inspect_teacher(teacher, config.teacher_quantization)
    for label in reader.labels:
        check_label(label, found.labels, f"--teacher {one_line(teacher)}", "the teacher's classes are")
    return found


def _subject(facts: ModelInfo) -> Subject:
    """Return a model that reads its own tokens and lies in a folder."""
    if facts.labels is not None:
        return Subject(
            facts, facts, lambda device: load_class_reader(facts, device.device),
            lambda device: load_class_reader(facts, device.device),
        )  # fmt: skip
    return Subject(facts, facts, lambda device: load_measured(facts.path, device.device))


def _has_other_tokens(config: EvalConfig, reader: ModelInfo, session: Session) -> bool:
    """Whether a metric asks for the teacher, and the teacher's tokenizer is not the model's."""
    asked = any(describe(name).needs_teacher for name in config.evaluation.metrics)
    if config.teacher is None or is_url(config.teacher) or not asked:
        return False
    return difference(reader.tokenizer, session.inspect(config.teacher).tokenizer) is not None


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


def with_model_name(config: EvalConfig) -> EvalConfig:
    """Return settings that name the server's model, which the server is asked for where they leave it open.

    Raises:
        KDError: SERVE-01 to SERVE-08.
    """
    if config.server.url is None or config.server.model is not None:
        return config
    server = config.server.model_copy(update={"model": Client(config.server).model()})
    return config.model_copy(update={"server": server})


def choice_note(model: str, name: str) -> str:
    """Return what a reader of a student's scores must know of how it was chosen; empty where there is nothing.

    Args:
        model: a run folder, or the ``best`` or ``model`` folder in one.
        name: of the evaluation, which is called after its rows.
    """
    here = Path(model).expanduser()
    run = here if here.name not in (BEST, MODEL) else here.parent
    try:
        if not RunFolder(run).is_run:
            return ""
        follows = "monitor" in RunFolder(run).manifest()["identity"]
        config = resolve.resolve(DistillConfig, file=run / CONFIG)
    except (KDError, OSError):
        return ""
    if not watches_held_out(config.monitor, config.data) or name != evaluation_name(str(config.data.eval)):
        return ""
    if here.name == BEST:
        return f"{run.name}/{BEST} was chosen by the held-out rows that it is measured on: its scores are too good"
    if follows:
        return f"the training of {run.name} followed the held-out rows that it is measured on: its scores are too good"
    return ""
