"""Loads models, opens the source and assembles the train job of a prepared run."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object

from kdcli import distributed
from kdcli.config.sections import EvalSettings
from kdcli.data.alignment import NO_OFFSET, TokenAligner, TokenReader
from kdcli.distill.model_card import model_card, save_model
from kdcli.distill.prepare import Prepared
from kdcli.distill.validation import Validator
from kdcli.errors import InputError
from kdcli.events import Event, Report
from kdcli.generation.decoder import Decoder
from kdcli.loading.session import Session
from kdcli.metrics.describe import describe
from kdcli.models.devices import Device
from kdcli.models.internals import position_bounds
from kdcli.models.load import LanguageModel
from kdcli.sources.base import StepBatches, TextGenerator
from kdcli.sources.teacher_text.remote import RemoteGenerator
from kdcli.storage.run_dir import MADE, RunFolder
from kdcli.students.supernet_spec import is_supernet, parse_supernet
from kdcli.teachers.base import Teacher, live_models
from kdcli.teachers.cross_tokenizer import CrossTokenizerTeacher
from kdcli.teachers.load import evaluation_teacher, live_teacher, teacher_for
from kdcli.teachers.remote import ASKED, RemoteTeacher
from kdcli.training.job import TrainJob
from kdcli.training.placement import Side

# Loads what a checked run's student learns from.


def load_teacher(
    prepared: Prepared, start: Device, session: Session, report: Report, folder: Path | None = None
) -> Teacher | None:
    """Return what the student learns from, None if the objective asks for nothing.

    Args:
        prepared: the run, checked.
        start: where models are loaded.
        session: what is loaded already.
        report: called with notes.
        folder: the run's, where a server's replies are kept; None keeps none.

    Raises:
        KDError: a model that cannot be loaded, rows longer than it reads, or a cache that lacks some.
    """
    facts = prepared.pair.teacher
    if not prepared.needs_teacher or facts is None:
        return None
    if prepared.teacher_rows is not None:
        return _aligned(prepared, start, session, report)
    if facts.server is not None and prepared.teacher_cache is None:
        kept = None if folder is None else folder / ASKED / f"rank-{distributed.rank()}"
        return RemoteTeacher(facts.server, facts.tokenizer, prepared.pair.vocab, facts.server.top_k, kept)
    return teacher_for(
        prepared.teacher_cache, facts, prepared.dataset, prepared.data, prepared.hardware, start, session, report
    )


def tell_of_checkpoints(report: Report, teacher: Teacher | None, checkpoints: int) -> Report:
    """Return a report that also tells the teacher of every checkpoint saved.

    Args:
        report: what it passes events on to.
        teacher: what the student learns from.
        checkpoints: how many are kept.
    """
    if teacher is None:
        return report

    def listening(event: Event) -> None:
        if event.kind == "saved":
            teacher.after_checkpoint(checkpoints)
        report(event)

    return listening


def _aligned(prepared: Prepared, start: Device, session: Session, report: Report) -> CrossTokenizerTeacher:
    """Return a teacher of another tokenizer, which reads the same text."""
    pair, rows = prepared.pair, prepared.teacher_rows
    assert pair.teacher is not None, "a pair of different tokenizers is a pair"
    assert pair.teacher_vocab is not None, "see Pair"
    assert rows is not None, "see Prepared"
    inner = live_teacher(pair.teacher, start, session)
    models = live_models(inner)
    positions = min((model.positions for model in models if model.positions is not None), default=None)
    over = sum(length > positions for length in rows.lengths) if positions is not None else 0
    if over:
        what = f"{over:,} of {len(rows):,} rows have more tokens for the teacher than it has positions ({positions:,})"
        report(Event("note", f"{what}: it says nothing on their ends"))
    return CrossTokenizerTeacher(
        inner, token_aligner_of(prepared), vocab=pair.teacher_vocab, pad_id=models[0].pad_id, positions=positions
    )


def token_aligner_of(prepared: Prepared) -> TokenAligner:
    """Return what turns the student's sequences into those of a teacher of another tokenizer."""
    pair, rows = prepared.pair, prepared.teacher_rows
    assert pair.teacher is not None, "a pair of different tokenizers is a pair"
    assert rows is not None, "see Prepared"
    own = TokenReader(pair.reader.tokenizer, pair.reader.ends, prepared.dataset)
    return TokenAligner(own, TokenReader(pair.teacher.tokenizer, pair.teacher.ends, rows))


def share_met(prepared: Prepared, rows: int) -> float:
    """Return the share of the student's response tokens that are aligned with the teacher's, over the first rows.

    No weight is read. The teacher's longest sequence is not taken into account.
    """
    aligner, examples = token_aligner_of(prepared), prepared.dataset.examples[:rows]
    found = [aligner.align(one.ids, one.prompt_length, row).places for row, one in enumerate(examples)]
    return sum(place != NO_OFFSET for places in found for place in places) / sum(map(len, found))


@dataclass(frozen=True)
class Models:
    """The models of a run, loaded.

    Args:
        student: the model that learns.
        teacher: what it learns from, if the objective asks for it.
        writer: the teacher, where the source asks for it.
        generator: the server that generates in its stead.
    """

    student: LanguageModel
    teacher: Teacher | None
    writer: LanguageModel | None
    generator: TextGenerator | None = None

    @property
    def live(self) -> Sequence[LanguageModel]:
        """The models besides the student that read what the student reads."""
        return live_models(self.teacher) or (() if self.writer is None else (self.writer,))


def load_models(folder: RunFolder, prepared: Prepared, session: Session, report: Report) -> Models:
    """Load a run's models, and report notes on them.

    Raises:
        KDError: of the kind that fits, for a model that cannot be loaded or rows longer than it reads.
    """
    start = _start(prepared)
    student = session.load_student(prepared.pair, seed=prepared.train.seed, device=start.device, lora=prepared.lora)
    teacher = load_teacher(prepared, start, session, report, folder.path)
    student.check_length(max(prepared.dataset.lengths))
    _check_measured(prepared, student)
    models = Models(student, teacher, _writer(prepared, session), _author(prepared))
    if prepared.hardware.shard != "ddp" and distributed.world() > 1:
        _refuse_regimes(prepared, (student, *models.live))
    for note in [note for model in (student, *models.live) for note in model.notes]:
        report(Event("note", note))
    return models


def _check_measured(prepared: Prepared, student: LanguageModel) -> None:
    """Refuse held-out rows that the student cannot read, or answer, now and not after training."""
    rows, settings = prepared.test, prepared.evaluation
    if rows is None:
        return
    student.check_length(max(rows.lengths))
    answered = settings.metrics != EvalSettings().metrics or rows.without_prompt < len(rows)
    if answered and any(describe(name).input_kind == "texts" for name in settings.metrics):
        Decoder(student, student.vocab).check([one.ids[: one.prompt_length] for one in rows.examples])


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
    folder: RunFolder, prepared: Prepared, models: Models, session: Session, report: Report, command: str
) -> TrainJob:
    """Make everything one run trains with.

    Args:
        folder: the run's folder.
        prepared: the run as checked.
        models: its models.
        session: parts shared with other runs.
        report: called with events.
        command: what to type to go on after an interruption.
    """
    return TrainJob(
        student=models.student,
        teacher=models.teacher,
        loss=prepared.loss,
        windows=_windows(folder, prepared, models, report),
        vocab=prepared.pair.vocab,
        train=prepared.train,
        device=prepared.device,
        folder=folder.path,
        identity=prepared.identity,
        report=tell_of_checkpoints(report, models.teacher, prepared.train.keep),
        resume_command=command,
        monitor=_monitor(folder, prepared, session, models.student, report),
        hardware=prepared.hardware,
        supernet=parse_supernet(prepared.pair.student) if is_supernet(prepared.pair.student) else None,
        **_whole_outside(prepared),
    )


def _start(prepared: Prepared) -> Device:
    """Return where models are loaded: one that is sharded need not fit on one device, except for a cache's head."""
    if prepared.hardware.shard == "ddp" or distributed.world() == 1 or prepared.teacher_cache is not None:
        return prepared.device
    return replace(prepared.device, device=torch.device("cpu"))


def _whole_outside(prepared: Prepared) -> dict[str, frozenset[Side]]:
    """Say which models are used outside a training step, where shards of them do not do."""
    wanted, validation, facts = prepared.source.needs(), prepared.validation, prepared.pair.teacher
    served = facts is not None and facts.server is not None
    writers: dict[Side, bool] = {"student": wanted.student, "teacher": wanted.teacher and not served}
    compared = validation is not None and validation.needs_teacher
    return {
        "generates_with": frozenset(side for side, writes in writers.items() if writes),
        "evaluates_with": frozenset({"student", "teacher"} if compared else {"student"}),
    }


def _writer(prepared: Prepared, session: Session) -> LanguageModel | None:
    """Return the teacher whose weights the source reads or writes with, if it does."""
    facts, there = prepared.pair.teacher, _start(prepared) if prepared.needs_teacher else prepared.device
    if facts is None or facts.server is not None or not prepared.source.needs().teacher:
        return None
    return session.load_teacher(facts.path, there.device)


def _author(prepared: Prepared) -> TextGenerator | None:
    """Return the server that writes the teacher's text, if it does."""
    facts = prepared.pair.teacher
    if facts is None or facts.server is None or not prepared.source.needs().teacher:
        return None
    return RemoteGenerator(facts.server, prepared.pair.reader)


def _windows(folder: RunFolder, prepared: Prepared, models: Models, report: Report) -> StepBatches:
    """Return the training windows, with everything they may write with."""
    student = models.student
    data = prepared.data
    together = (student, *models.live) if prepared.teacher_rows is None else (student,)
    limits = [data.max_length, *(model.positions for model in together)]
    shared = {"gather": gather_object} if distributed.world() > 1 else {}

    def progress(what: str, done: int, total: int, rate: float) -> None:
        report(Event("progress", what, done=done, total=total, values={"tokens/s": rate}))

    return prepared.windows(
        student.pad_id, distributed.rank(), distributed.world(),
        student=student, teacher=models.writer, generator=models.generator,
        folder=Path(data.teacher_text) if data.teacher_text else folder.path / MADE,
        longest=min(limit for limit in limits if limit is not None), progress=progress, **shared,
    )  # fmt: skip


def _monitor(
    folder: RunFolder, prepared: Prepared, session: Session, student: LanguageModel, report: Report
) -> Validator | None:
    """Return what evaluates the student during training."""
    validation, pair = prepared.validation, prepared.pair
    if validation is None:
        return None
    teacher = None
    if validation.needs_teacher and pair.teacher is not None:
        teacher = evaluation_teacher(
            prepared.teacher_cache, pair.teacher, validation.rows, prepared.data, prepared.hardware, _start(prepared),
            session,
        )  # fmt: skip

    def keep(about: dict[str, Any]) -> None:
        kept = {"loss": prepared.label, "seed": prepared.train.seed, **about}
        save_model(student, folder.best, kept, model_card(prepared))

    shown = replace(student, vocab=pair.vocab)
    shown.check_length(max(validation.rows.lengths))
    return Validator(validation, shown, teacher, prepared.device, keep, report)
