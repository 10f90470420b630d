"""One training run: settings -> checked parts -> training -> saved student -> evaluation."""

import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object

from kdcli import durable, processes, settings
from kdcli.config import DistillConfig
from kdcli.engine.devices import Device
from kdcli.engine.ensemble import living
from kdcli.engine.events import Event, Report
from kdcli.engine.loop import Outcome, Training, train
from kdcli.engine.placement import Side
from kdcli.errors import InterruptedRunError, KDError, UsageError
from kdcli.models.adapter import save_adapter
from kdcli.models.load import LanguageModel
from kdcli.models.save import save_student
from kdcli.runs import lock
from kdcli.runs.card import CARD, model_card, renew_card
from kdcli.runs.environment import changes, environment
from kdcli.runs.evaluation.evaluate import evaluate_student
from kdcli.runs.folder import MADE, RunFolder
from kdcli.runs.monitor import StudentMonitor
from kdcli.runs.plan import plan_distill
from kdcli.runs.prepare import Prepared, prepare_run
from kdcli.runs.records import EvalRecord, RunRecord
from kdcli.runs.teachers import mentor_for, teacher_for
from kdcli.runs.workshop import Workshop
from kdcli.sources.base import Windows

__all__ = ["distill", "plan_distill", "read_run"]

ADAPTER = "adapter"


def distill(
    config: DistillConfig,
    report: Report,
    *,
    resume: bool = True,
    command: str = "",
    workshop: Workshop | None = None,
    prepared: Prepared | None = None,
) -> RunRecord:
    """Train a student, or go on where it was stopped, or return what is finished.

    Args:
        config: the run's settings; ``output`` is the run folder.
        report: told what happens.
        resume: whether a folder that holds this run may be continued.
        command: what to type to go on after an interruption.
        workshop: parts shared with other runs.
        prepared: the run as checked, and its notes told, before.

    Returns:
        the record, with the evaluation if held-out rows were given.

    Raises:
        KDError: of the kind that fits; a mistake in the settings is found before weights are read.
        InterruptedRunError: stopped by a signal after saving.
    """
    workshop = workshop or Workshop()
    told = prepared is not None
    prepared = replace(prepared, config=config) if prepared else prepare_run(config, workshop)
    if config.output is None:
        raise UsageError("CLI-20", "no run folder", where="-o", fix="give one, such as -o runs/akl")
    folder = RunFolder(Path(config.output))
    known = folder.check(prepared.identity, resume=resume or processes.rank() > 0)
    if known and folder.is_done:
        return _finished(folder, prepared, workshop, report)
    if not told:
        tell(prepared, report)
    report(Event("note", f"{prepared.device.description} · {prepared.label} · {prepared.steps:,} steps"))
    with _held(folder), _logged(folder, prepared):
        _begin(folder, prepared, report)
        outcome = _train(folder, prepared, workshop, report, command or _again(folder))
        record = _record(folder, prepared.identity, outcome, already_done=False)
        return _with_evaluation(record, prepared, workshop, report)


def tell(prepared: Prepared, report: Report) -> None:
    """Report what was found in models and data."""
    for note in prepared.notes:
        report(Event("note", note))
    for warning in prepared.warnings:
        report(Event("warning", warning))


def read_run(path: Path) -> RunRecord:
    """Read the record of a finished run; its evaluations are not read.

    Raises:
        InputError: not a finished kd run.
    """
    folder = RunFolder(path)
    identity = folder.manifest()["identity"]
    status = folder.status()
    if not folder.is_done:
        raise UsageError(
            "RUN-12",
            f"the run is not finished (step {status.get('steps', 0)} of {identity.get('steps')})",
            where=str(path),
            fix=f"finish it with: {_again(folder)}",
        )
    outcome = Outcome(**{field.name: status[field.name] for field in fields(Outcome) if field.name in status})
    return _record(folder, identity, outcome, already_done=True)


def _finished(folder: RunFolder, prepared: Prepared, workshop: Workshop, report: Report) -> RunRecord:
    report(Event("note", f"{folder.path} is already done"))
    return _with_evaluation(read_run(folder.path), prepared, workshop, report)


def _with_evaluation(record: RunRecord, prepared: Prepared, workshop: Workshop, report: Report) -> RunRecord:
    found: EvalRecord | None = None
    if prepared.test is not None and processes.rank() == 0:
        found = evaluate_student(record.folder, prepared.config, workshop, report)
        if prepared.config.evaluation.split == "test":
            renew_card(record.model, model_card(prepared, found))
    return replace(record, evaluation=found)


def _begin(folder: RunFolder, prepared: Prepared, report: Report) -> None:
    """Write what the run is; asks again what the folder holds, now that nobody else may change it."""
    if processes.rank() != 0:
        return
    now = environment()
    if folder.check(prepared.identity, resume=True):
        for change in changes(folder.manifest()["environment"], now):
            report(Event("warning", change))
    folder.begin(settings.to_yaml(prepared.config), prepared.identity, now | {"device": prepared.device.description})
    folder.set_status("training", total=prepared.steps)


def _train(folder: RunFolder, prepared: Prepared, workshop: Workshop, report: Report, command: str) -> Outcome:
    device, pair, config = prepared.device, prepared.pair, prepared.config
    start = _start(prepared)
    student = workshop.load_student(pair, seed=config.train.seed, device=start.device, lora=config.lora)
    teacher = None
    if prepared.needs_teacher and pair.teacher is not None:
        teacher = teacher_for(
            config.teacher_cache, pair.teacher, prepared.dataset, config.data, config.hardware, start, workshop
        )
    student.check_length(max(prepared.dataset.lengths))
    writer = _writer(prepared, workshop)
    live = living(teacher) or ([] if writer is None else [writer])
    for note in [note for model in (student, *live) for note in model.notes]:
        report(Event("note", note))
    started = time.process_time()
    training = Training(
        student=student,
        teacher=teacher,
        loss=prepared.loss,
        windows=_windows(folder, prepared, student, writer, live, report),
        vocab=pair.vocab,
        train=config.train,
        device=device,
        folder=folder.path,
        identity=prepared.identity,
        report=report,
        resume_command=command,
        monitor=_monitor(folder, prepared, workshop, student, report),
        hardware=config.hardware,
        **_whole_outside(prepared),
    )
    outcome = train(training)
    workshop.forget_emptied()
    if processes.rank() == 0:
        save_model(student, folder.model, {"loss": prepared.label, "seed": config.train.seed}, model_card(prepared))
        if config.lora.keep:
            durable.commit_folder(
                folder.path / ADAPTER, lambda target: save_adapter(student.adapter, target), {"kind": "adapter"}
            )
        spent = folder.status().get("cpu_seconds", 0.0) + time.process_time() - started
        taught = outcome.student_tokens * len(living(teacher))
        folder.set_status("done", **vars(outcome), teacher_tokens=taught, cpu_seconds=round(spent, 2))
    return outcome


def _start(prepared: Prepared) -> Device:
    """Return where models are loaded: what will lie in shards need never fit on one device, but for a cache's head."""
    config = prepared.config
    if config.hardware.shard == "ddp" or processes.world() == 1 or config.teacher_cache is not None:
        return prepared.device
    return replace(prepared.device, device=torch.device("cpu"))


def _whole_outside(prepared: Prepared) -> dict[str, frozenset[Side]]:
    """Say which models are used outside a training step, where shards of them do not do."""
    wanted, watched = prepared.source.needs(), prepared.watched
    writers: dict[Side, bool] = {"student": wanted.student, "teacher": wanted.teacher}
    compared = watched is not None and watched.needs_teacher
    return {
        "drawn_with": frozenset(side for side, writes in writers.items() if writes),
        "measured_with": frozenset({"student", "teacher"} if compared else {"student"}),
    }


def _writer(prepared: Prepared, workshop: Workshop) -> LanguageModel | None:
    """Return the teacher whose weights the source reads or writes with, if it does."""
    facts, there = prepared.pair.teacher, _start(prepared) if prepared.needs_teacher else prepared.device
    if facts is None or not prepared.source.needs().teacher:
        return None
    return workshop.load_teacher(facts.path, there.device)


def _windows(
    folder: RunFolder,
    prepared: Prepared,
    student: LanguageModel,
    writer: LanguageModel | None,
    live: Sequence[LanguageModel],
    report: Report,
) -> Windows:
    """Return the training windows, with everything they may write with.

    Args:
        folder: the run's folder.
        prepared: the run.
        student: the model in training.
        writer: the teacher, where the source asks for it.
        live: the models besides that must be able to read what is written.
        report: told how far writing is.
    """
    data = prepared.config.data
    limits = [data.max_length, *(model.positions for model in (student, *live))]
    shared = {"gather": gather_object} if processes.world() > 1 else {}

    def progress(what: str, done: int, total: int, rate: float) -> None:
        report(Event("progress", what, done=done, total=total, values={"tokens/s": rate}))

    return prepared.windows(
        student.pad_id, processes.rank(), processes.world(),
        student=student, teacher=writer, folder=Path(data.made) if data.made else folder.path / MADE,
        longest=min(limit for limit in limits if limit is not None), progress=progress, **shared,
    )  # fmt: skip


def _monitor(
    folder: RunFolder, prepared: Prepared, workshop: Workshop, student: LanguageModel, report: Report
) -> StudentMonitor | None:
    """Return what looks at the student while it is trained."""
    watched, pair, config = prepared.watched, prepared.pair, prepared.config
    if watched is None:
        return None
    teacher = None
    if watched.needs_teacher and pair.teacher is not None:
        teacher = mentor_for(
            config.teacher_cache, pair.teacher, watched.rows, config.data, config.hardware, _start(prepared), workshop
        )

    def keep(about: dict[str, Any]) -> None:
        kept = {"loss": prepared.label, "seed": config.train.seed, **about}
        save_model(student, folder.best, kept, model_card(prepared))

    shown = replace(student, vocab=pair.vocab)
    shown.check_length(max(watched.rows.lengths))
    return StudentMonitor(watched, shown, teacher, prepared.device, keep, report)


def save_model(model: LanguageModel, final: Path, extra: dict[str, Any], card: str) -> None:
    """Write a student and its card as a transformers folder that appears whole or not at all."""

    def fill(target: Path) -> None:
        save_student(model, target)
        (target / CARD).write_text(card, encoding="utf-8")

    durable.commit_folder(final, fill, {"kind": "model", **extra})


def _record(folder: RunFolder, identity: dict[str, Any], outcome: Outcome, *, already_done: bool) -> RunRecord:
    return RunRecord(
        folder=folder.path,
        loss=identity["loss"],
        seed=identity["train.seed"],
        steps=outcome.steps,
        tokens=outcome.tokens,
        seconds=outcome.seconds,
        peak_bytes=outcome.peak_bytes,
        identity=identity,
        already_done=already_done,
    )


@contextmanager
def _held(folder: RunFolder) -> Iterator[None]:
    """Make the folder and hold its lock, on the first rank only."""
    with ExitStack() as stack:
        if processes.rank() == 0:
            try:
                folder.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise durable.refused(error, folder.path) from error
            stack.enter_context(lock.hold(folder.path))
        yield


@contextmanager
def _logged(folder: RunFolder, prepared: Prepared) -> Iterator[None]:
    """Record in the folder how a run ended that did not end well."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except InterruptedRunError:
        _note_end(folder, "interrupted", None)
        raise
    except Exception as error:
        _note_end(folder, "failed", error)
        raise


def _note_end(folder: RunFolder, state: str, error: Exception | None) -> None:
    """Write status and error.log; a disk that refuses these too must not hide the first error."""
    if processes.rank() != 0:
        return
    try:
        if error is not None:
            durable.write_file(folder.path / "error.log", "".join(traceback.format_exception(error)))
        if folder.is_run and not folder.is_done:
            folder.set_status(state, **_progress(folder))
    except KDError:
        return


def _progress(folder: RunFolder) -> dict[str, int]:
    steps = sorted(int(path.name.removeprefix("checkpoint-")) for path in folder.path.glob("checkpoint-????????"))
    return {"steps": steps[-1]} if steps else {}


def _again(folder: RunFolder) -> str:
    return f"kd distill -c {folder.path / 'config.yaml'} -o {folder.path}"
