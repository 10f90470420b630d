"""``kd distill``: prepare, set up, train, save, evaluate, record."""

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from kdcli import distributed
from kdcli.config import resolve
from kdcli.config.schema import DistillConfig
from kdcli.distill.fingerprint import changes, environment
from kdcli.distill.model_card import (
    SCORED,
    card_has_scores,
    model_card,
    rehearse,
    renew_card,
    save_adapter_alone,
    save_model,
)
from kdcli.distill.plan import plan_distill
from kdcli.distill.prepare import Prepared, prepare_run
from kdcli.distill.records import RunRecord
from kdcli.distill.setup import assemble_training, load_models
from kdcli.errors import IntegrityError, UsageError
from kdcli.evaluation.evaluate import evaluate_student
from kdcli.evaluation.records import EvalRecord, is_sparse
from kdcli.evaluation.run_access import locked, record_failure, remove_superseded, superseded_files
from kdcli.events import Event, Report
from kdcli.loading.session import Session
from kdcli.models.checks import open_folder
from kdcli.models.load import LanguageModel
from kdcli.models.zeros import compressed_bytes, zero_share
from kdcli.registry import plugins
from kdcli.sources.token_counts import Made, TokenCounts
from kdcli.storage import stored
from kdcli.storage.run_dir import CONFIG, STATUS, RunFolder
from kdcli.text import typed
from kdcli.training.job import TrainResult
from kdcli.training.trainer import train

__all__ = ["distill", "plan_distill", "read_run"]


def distill(
    config: DistillConfig,
    report: Report,
    *,
    resume: bool = True,
    command: str = "",
    session: Session | None = None,
    prepared: Prepared | None = None,
) -> RunRecord:
    """Train a student, or go on where it was stopped, or return what is finished.

    Args:
        config: the run's settings; ``output`` is the run folder.
        report: called with events.
        resume: whether a folder that holds this run may be continued.
        command: what to type to go on after an interruption.
        session: parts shared with other runs.
        prepared: the run as checked, and its notes told, before.

    Returns:
        the record, with the evaluation if held-out rows were given.

    Raises:
        KDError: of the kind that fits; a mistake in the settings is found before weights are read.
        InterruptedRunError: stopped by a signal after saving.
    """
    session = session or Session()
    told = prepared is not None
    prepared = prepared or prepare_run(config, session)
    if config.output is None:
        raise UsageError("CLI-20", "no run folder", where="-o", fix="give one, such as -o runs/akl")
    folder = RunFolder(Path(config.output))
    known = folder.check(prepared.identity, resume=resume or distributed.rank() > 0)
    if known and folder.is_done:
        return _finished(folder, prepared, session, report)
    if not told:
        report_notes(prepared, report)
    report(Event("note", f"{prepared.device.description} · {prepared.label} · {prepared.steps:,} steps"))
    with locked(folder), record_failure(folder):
        if distributed.world() == 1 and folder.check(prepared.identity, resume=True) and folder.is_done:
            # a kill had set its model aside, and the sweep put it back
            return _finished(folder, prepared, session, report)
        _begin(folder, resolve.to_yaml(config), prepared, report)
        outcome = _train(folder, prepared, session, report, command or _again(folder))
        record = _record(folder, prepared.identity, outcome, already_done=False)
        return _with_evaluation(record, prepared, session, report)


def report_notes(prepared: Prepared, report: Report) -> None:
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
    folder.check_files()
    outcome = stored.fit(status, TrainResult, folder.path / STATUS, fix=f"train it again: {_again(folder)}")
    return _record(folder, identity, outcome, already_done=True)


def _finished(folder: RunFolder, prepared: Prepared, session: Session, report: Report) -> RunRecord:
    report(Event("note", f"{folder.path} is already done"))
    if distributed.rank() == 0:
        remove_superseded(folder.path, keep_checkpoints=prepared.train.keep_finished)
    return _with_evaluation(read_run(folder.path), prepared, session, report)


def is_complete(folder: RunFolder, prepared: Prepared) -> bool:
    """Whether nothing is left to do about a run that is done and measured: its card has its scores, nothing is over."""
    try:
        scored = prepared.evaluation.split != "test" or card_has_scores(folder.model)
    except IntegrityError:  # the run itself says so when it is asked for
        return False
    return scored and not superseded_files(folder.path, keep_checkpoints=prepared.train.keep_finished)


def _with_evaluation(record: RunRecord, prepared: Prepared, session: Session, report: Report) -> RunRecord:
    found: EvalRecord | None = None
    if prepared.test is not None and distributed.rank() == 0:
        found = evaluate_student(record.folder, prepared.measuring, session, report)
        if prepared.evaluation.split == "test":
            renew_card(record.model, model_card(prepared, found))
    return replace(record, evaluation=found)


def _begin(folder: RunFolder, settings: str, prepared: Prepared, report: Report) -> None:
    """Write what the run is, and its settings; checks the folder again, now that it is locked."""
    if distributed.rank() != 0:
        return
    now = environment()
    if folder.check(prepared.identity, resume=True):
        for change in changes(folder.manifest()["environment"], now):
            report(Event("warning", change))
    folder.begin(settings, prepared.identity, now | {"device": prepared.device.description})
    folder.set_status("training", total=prepared.steps, rows=len(prepared.dataset))


def _train(folder: RunFolder, prepared: Prepared, session: Session, report: Report, command: str) -> TrainResult:
    models = load_models(folder, prepared, session, report)
    if distributed.rank() == 0:
        rehearse(models.student, folder.path, model_card(prepared), adapter=prepared.lora.keep)
    started = time.process_time()
    training = assemble_training(folder, prepared, models, session, report, command)
    _note_text(folder, training.windows.made)
    outcome = train(training)
    session.forget_emptied()
    if distributed.rank() == 0:
        about = {"loss": prepared.label, "seed": prepared.train.seed, SCORED: False}
        save_model(models.student, folder.model, about, model_card(prepared))
        if prepared.lora.keep:
            save_adapter_alone(models.student, folder.path)
        spent = folder.status().get("cpu_seconds", 0.0) + time.process_time() - started
        readers = 0 if models.teacher is None else models.teacher.readers
        taught = None if prepared.teacher_rows else outcome.student_tokens * readers
        facts = {"teacher_tokens": taught, "asks_teacher": prepared.needs_teacher, **_zeros(models.student, folder)}
        folder.set_status("done", **vars(outcome), **facts, cpu_seconds=round(spent, 2))
        remove_superseded(folder.path, keep_checkpoints=prepared.train.keep_finished)
    return outcome


def _zeros(student: LanguageModel, folder: RunFolder) -> dict[str, Any]:
    """Return how many weights of a trained student are 0, and what the file of a sparse one takes compressed."""
    if student.adapter is not None or not student.has_trunk:
        return {}
    share = zero_share(student.model)
    packed = (
        {"compressed_bytes": compressed_bytes(open_folder(str(folder.model), images=True).files)}
        if is_sparse(share)
        else {}
    )
    return {"zeros": share, **packed}


def _note_text(folder: RunFolder, made: Made) -> None:
    """Add what this process let the teacher write before the first step to what the run did already."""
    if not made.fresh or distributed.rank() != 0:
        return
    before = folder.status().get("wrote", {})
    effort = TokenCounts.of_counts(before.get("effort", {})) + made.fresh_effort
    tokens, seconds = before.get("tokens", 0) + made.fresh, before.get("seconds", 0.0) + made.seconds
    folder.set_status("training", wrote={"tokens": tokens, "seconds": round(seconds, 3), "effort": asdict(effort)})


def _record(folder: RunFolder, identity: dict[str, Any], outcome: TrainResult, *, already_done: bool) -> RunRecord:
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


def _again(folder: RunFolder) -> str:
    return plugins.again(f"kd distill -c {typed(folder.path / CONFIG)} -o {typed(folder.path)}")
