"""Loads what a checked run trains with: models, windows, monitor."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object

from kdcli import processes
from kdcli.config import EvalSettings
from kdcli.engine.devices import Device
from kdcli.engine.ensemble import living
from kdcli.engine.events import Event, Report
from kdcli.engine.placement import Side
from kdcli.engine.teacher import Teacher
from kdcli.engine.training import Training
from kdcli.errors import InputError
from kdcli.generate.speaker import Speaker
from kdcli.metrics.describe import describe
from kdcli.models.internals import position_bounds
from kdcli.models.load import LanguageModel
from kdcli.runs.card import model_card
from kdcli.runs.folder import MADE, RunFolder
from kdcli.runs.keep_model import save_model
from kdcli.runs.monitor import StudentMonitor
from kdcli.runs.prepare import Prepared
from kdcli.runs.serving.author import ServedAuthor
from kdcli.runs.teachers import mentor_for
from kdcli.runs.teaching import forgetting, teacher_of
from kdcli.runs.workshop import Workshop
from kdcli.sources.author import Author
from kdcli.sources.base import Windows


@dataclass(frozen=True)
class Models:
    """The models of a run, loaded.

    Args:
        student: the model that learns.
        teacher: what it learns from, if the objective asks for it.
        writer: the teacher, where the source asks for it.
        author: the server that writes in its stead.
    """

    student: LanguageModel
    teacher: Teacher | None
    writer: LanguageModel | None
    author: Author | None = None

    @property
    def live(self) -> Sequence[LanguageModel]:
        """The models besides the student that read what the student reads."""
        return living(self.teacher) or ([] if self.writer is None else [self.writer])


def load_models(prepared: Prepared, workshop: Workshop, report: Report) -> Models:
    """Load a run's models, and tell what is found in them.

    Raises:
        KDError: of the kind that fits, for a model that cannot be loaded or rows longer than it reads.
    """
    pair, config = prepared.pair, prepared.config
    student = workshop.load_student(pair, seed=config.train.seed, device=_start(prepared).device, lora=config.lora)
    teacher = teacher_of(prepared, _start(prepared), workshop, report)
    student.check_length(max(prepared.dataset.lengths))
    _check_measured(prepared, student)
    models = Models(student, teacher, _writer(prepared, workshop), _author(prepared))
    if config.hardware.shard != "ddp" and processes.world() > 1:
        _refuse_regimes(prepared, (student, *models.live))
    for note in [note for model in (student, *models.live) for note in model.notes]:
        report(Event("note", note))
    return models


def _check_measured(prepared: Prepared, student: LanguageModel) -> None:
    """Refuse held-out rows that the student cannot read, or answer, now and not after training."""
    rows, settings = prepared.test, prepared.config.evaluation
    if rows is None:
        return
    student.check_length(max(rows.lengths))
    answered = settings.metrics != EvalSettings().metrics or rows.without_prompt < len(rows)
    if answered and any(describe(name).eats == "texts" for name in settings.metrics):
        Speaker(student, student.vocab).check([one.ids[: one.prompt_length] for one in rows.examples])


def _refuse_regimes(prepared: Prepared, models: Sequence[LanguageModel]) -> None:
    """Refuse shards of a model that reads some rows of a batch apart: all processes must run it equally often."""
    shortest, longest = min(prepared.dataset.lengths), max(prepared.dataset.lengths)
    for model in models:
        if any(shortest <= bound < longest for bound in position_bounds(model.model.config)):
            what = f"rows of {shortest} to {longest} tokens need several rotary positions, and are read apart"
            raise InputError(
                "MOD-26", what, where=model.path, fix="use --set hardware.shard=ddp, or lower data.max_length"
            )


def assemble_training(
    folder: RunFolder, prepared: Prepared, models: Models, workshop: Workshop, report: Report, command: str
) -> Training:
    """Make everything one run trains with.

    Args:
        folder: the run's folder.
        prepared: the run as checked.
        models: its models.
        workshop: parts shared with other runs.
        report: told what happens.
        command: what to type to go on after an interruption.
    """
    return Training(
        student=models.student,
        teacher=models.teacher,
        loss=prepared.loss,
        windows=_windows(folder, prepared, models, report),
        vocab=prepared.pair.vocab,
        train=prepared.config.train,
        device=prepared.device,
        folder=folder.path,
        identity=prepared.identity,
        report=forgetting(report, models.teacher, prepared.config.train.keep),
        resume_command=command,
        monitor=_monitor(folder, prepared, workshop, models.student, report),
        hardware=prepared.config.hardware,
        **_whole_outside(prepared),
    )


def _start(prepared: Prepared) -> Device:
    """Return where models are loaded: what will lie in shards need never fit on one device, but for a cache's head."""
    config = prepared.config
    if config.hardware.shard == "ddp" or processes.world() == 1 or config.teacher_cache is not None:
        return prepared.device
    return replace(prepared.device, device=torch.device("cpu"))


def _whole_outside(prepared: Prepared) -> dict[str, frozenset[Side]]:
    """Say which models are used outside a training step, where shards of them do not do."""
    wanted, watched, facts = prepared.source.needs(), prepared.watched, prepared.pair.teacher
    served = facts is not None and facts.server is not None
    writers: dict[Side, bool] = {"student": wanted.student, "teacher": wanted.teacher and not served}
    compared = watched is not None and watched.needs_teacher
    return {
        "drawn_with": frozenset(side for side, writes in writers.items() if writes),
        "measured_with": frozenset({"student", "teacher"} if compared else {"student"}),
    }


def _writer(prepared: Prepared, workshop: Workshop) -> LanguageModel | None:
    """Return the teacher whose weights the source reads or writes with, if it does."""
    facts, there = prepared.pair.teacher, _start(prepared) if prepared.needs_teacher else prepared.device
    if facts is None or facts.server is not None or not prepared.source.needs().teacher:
        return None
    return workshop.load_teacher(facts.path, there.device)


def _author(prepared: Prepared) -> Author | None:
    """Return the server that writes the teacher's text, if it does."""
    facts = prepared.pair.teacher
    if facts is None or facts.server is None or not prepared.source.needs().teacher:
        return None
    return ServedAuthor(facts.server, prepared.pair.reader)


def _windows(folder: RunFolder, prepared: Prepared, models: Models, report: Report) -> Windows:
    """Return the training windows, with everything they may write with."""
    student = models.student
    data = prepared.config.data
    together = (student, *models.live) if prepared.teacher_rows is None else (student,)
    limits = [data.max_length, *(model.positions for model in together)]
    shared = {"gather": gather_object} if processes.world() > 1 else {}

    def progress(what: str, done: int, total: int, rate: float) -> None:
        report(Event("progress", what, done=done, total=total, values={"tokens/s": rate}))

    return prepared.windows(
        student.pad_id, processes.rank(), processes.world(),
        student=student, teacher=models.writer, author=models.author,
        folder=Path(data.made) if data.made else folder.path / MADE,
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
