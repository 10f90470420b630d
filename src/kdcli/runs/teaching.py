"""Loads what a checked run's student learns from."""

from pathlib import Path

from kdcli import processes
from kdcli.data.reading import NOWHERE
from kdcli.data.translate import Reader, Translator
from kdcli.engine.aligned import AlignedTeacher
from kdcli.engine.devices import Device
from kdcli.engine.ensemble import living
from kdcli.engine.events import Event, Report
from kdcli.engine.teacher import Teacher
from kdcli.runs.prepare import Prepared
from kdcli.runs.serving.places import ASKED
from kdcli.runs.serving.teacher import ServedTeacher
from kdcli.runs.teachers import live_teacher, teacher_for
from kdcli.runs.workshop import Workshop


def teacher_of(prepared: Prepared, start: Device, workshop: Workshop, report: Report) -> Teacher | None:
    """Return what the student learns from, None if the objective asks for nothing.

    Args:
        prepared: the run, checked.
        start: where models are loaded.
        workshop: what is loaded already.
        report: told what was found.

    Raises:
        KDError: a model that cannot be loaded, rows longer than it reads, or a cache that lacks some.
    """
    facts, config = prepared.pair.teacher, prepared.config
    if not prepared.needs_teacher or facts is None:
        return None
    if prepared.teacher_rows is not None:
        return _aligned(prepared, start, workshop, report)
    if facts.server is not None and config.teacher_cache is None:
        kept = Path(str(config.output)) / ASKED / f"rank-{processes.rank()}"
        return ServedTeacher(facts.server, facts.tokenizer, prepared.pair.vocab, facts.server.top_k, kept)
    return teacher_for(config.teacher_cache, facts, prepared.dataset, config.data, config.hardware, start, workshop)


def forgetting(report: Report, teacher: Teacher | None, checkpoints: int) -> Report:
    """Return a report that lets a server's answers go with the checkpoints that needed them.

    Args:
        report: what it passes events on to.
        teacher: what the student learns from.
        checkpoints: how many are kept.
    """
    kept = teacher.kept if isinstance(teacher, ServedTeacher) else None
    if kept is None:
        return report

    def listening(event: Event) -> None:
        if event.kind == "saved":
            kept.turn(checkpoints)
        report(event)

    return listening


def _aligned(prepared: Prepared, start: Device, workshop: Workshop, report: Report) -> AlignedTeacher:
    """Return a teacher of another tokenizer, which reads the same text."""
    pair, rows = prepared.pair, prepared.teacher_rows
    assert pair.teacher is not None, "a pair of different tokenizers is a pair"
    assert pair.teacher_vocab is not None, "see Pair"
    assert rows is not None, "see Prepared"
    inner = live_teacher(pair.teacher, start, workshop)
    models = living(inner)
    positions = min((model.positions for model in models if model.positions is not None), default=None)
    over = sum(length > positions for length in rows.lengths) if positions is not None else 0
    if over:
        what = f"{over:,} of {len(rows):,} rows have more tokens for the teacher than it has positions ({positions:,})"
        report(Event("note", f"{what}: it says nothing on their ends"))
    return AlignedTeacher(
        inner, translator_of(prepared), vocab=pair.teacher_vocab, pad_id=models[0].pad_id, positions=positions
    )


def translator_of(prepared: Prepared) -> Translator:
    """Return what turns the student's sequences into those of a teacher of another tokenizer."""
    pair, rows = prepared.pair, prepared.teacher_rows
    assert pair.teacher is not None, "a pair of different tokenizers is a pair"
    assert rows is not None, "see Prepared"
    own = Reader(pair.reader.tokenizer, pair.reader.ends, prepared.dataset)
    return Translator(own, Reader(pair.teacher.tokenizer, pair.teacher.ends, rows))


def share_met(prepared: Prepared, rows: int) -> float:
    """Return the share of the student's response tokens that the teacher can speak of, over the first so many rows.

    No weight is read. A bound on the teacher's positions is not looked at.
    """
    translator, examples = translator_of(prepared), prepared.dataset.examples[:rows]
    found = [translator.counterpart(one.ids, one.prompt_length, row).places for row, one in enumerate(examples)]
    return sum(place != NOWHERE for places in found for place in places) / sum(map(len, found))
