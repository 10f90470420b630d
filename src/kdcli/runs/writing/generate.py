"""``kd generate``: prompts -> what a teacher answers -> rows, made once and found again by any training."""

import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdcli import __version__, durable
from kdcli.config import GenerateConfig
from kdcli.engine.events import Event, Report
from kdcli.engine.stop import StopRequest
from kdcli.errors import InterruptedRunError, UsageError
from kdcli.runs import lock
from kdcli.runs.serving.author import ServedAuthor
from kdcli.runs.workshop import Workshop
from kdcli.runs.writing.prepare import Task, prepare_task
from kdcli.runs.writing.record import TextRecord, check_same_text, keep_about
from kdcli.runs.writing.rows import ROWS, Written, original_rows, write_rows
from kdcli.sources.base import Ground
from kdcli.sources.made_text import MadeText, author_of, folder_name, made_of, made_text, prompts_of
from kdcli.sources.sentences import Sentence


def generate(
    config: GenerateConfig, report: Report, *, command: str = "", workshop: Workshop | None = None
) -> TextRecord:
    """Let a teacher answer what it has not answered yet, and write the answers that pass the filters as rows.

    Args:
        config: teacher, prompts, how it writes; ``output`` is the folder, which a training's ``data.made`` may name.
        report: told how far it is.
        command: what to type to go on after an interruption.
        workshop: what is loaded already.

    Raises:
        KDError: of the kind that fits; a mistake in the settings is found before weights are read.
        InterruptedRunError: stopped by a signal; every answer that was done is kept.
    """
    workshop = workshop or Workshop()
    task = prepare_task(config, workshop)
    if config.output is None:
        raise UsageError("CLI-20", "no folder", where="-o", fix="give one, such as -o text")
    folder = Path(config.output)
    for note in (*task.notes, *task.dataset.notes):
        report(Event("note", note))
    durable.make_folder(folder)
    with lock.hold(folder), StopRequest() as stop:
        durable.sweep(folder)
        writing = _Writing(report, stop, command)
        ground = replace(
            task.ground(folder), report=writing.spoken, progress=writing.progress, **_who_writes(task, workshop)
        )
        name = folder_name(task.source, ground, prompts_of(task.source, ground))
        check_same_text(folder, name)
        report(Event("stage", "the teacher writes", total=task.answers))
        made = made_text(task.source, ground)
        return _laid_out(config, task, ground, made, folder, writing)


def _who_writes(task: Task, workshop: Workshop) -> dict[str, Any]:
    """Return the teacher, or the server that writes in its stead, as a field of the ground."""
    if task.teacher.server is not None:
        return {"author": ServedAuthor(task.teacher.server, task.reader)}
    return {"teacher": workshop.load_teacher(task.teacher.path, task.device.device)}


def plan_generate(config: GenerateConfig) -> dict[str, Any]:
    """Say what would be written; nothing is written, no weight is read."""
    task = prepare_task(config, Workshop())
    return {
        "teacher": task.teacher.path,
        "device": task.device.description,
        "prompts": len(task.dataset),
        "answers": task.answers,
        "tokens_at_most": task.answers * task.source.max_new_tokens,
        "longest": task.longest,
        "first_prompt": task.dataset.examples[0].prompt,
    }


class _Writing:
    """Watches a teacher write: counts, reports, and ends it where a signal asks for it."""

    def __init__(self, report: Report, stop: StopRequest, command: str) -> None:
        self._report, self._stop, self._command = report, stop, command
        self._done = self._total = 0
        self._started: float | None = None
        self.tokens, self.seconds = 0, 0.0

    def spoken(self, tokens: int) -> None:
        """Count tokens just written; answers that are done are on disk, so that this is the place to stop."""
        self.tokens += tokens
        if self._stop.signal_number:
            what = f"stopped after {self._done:,} of {self._total:,} answers, saved"
            raise InterruptedRunError(
                self._stop.signal_number, what, fix=f"go on with: {self._command or 'the same line'}"
            )

    def progress(self, what: str, done: int, total: int, rate: float) -> None:
        """Report an answer; the first call comes before any."""
        if self._started is None:
            self._started = time.monotonic()
            if done:
                self._report(Event("note", f"{done:,} of {total:,} answers are there already"))
        self._done, self._total, self.seconds = done, total, time.monotonic() - self._started
        values = {"tokens/s": rate} if rate else {}
        self._report(Event("progress", what, done=done, total=total, values=values))


def _laid_out(
    config: GenerateConfig, task: Task, ground: Ground, made: MadeText, folder: Path, writing: _Writing
) -> TextRecord:
    """Write the rows and the note on them."""
    assert made.folder is not None, "a folder was given"
    kept, author = task.source.kept(made), author_of(ground)
    written = write_rows(
        folder / ROWS, kept, original_rows(task.path, config.data), author.tokenizer, config.data, author.ends
    )
    dropped = _dropped(task, made, kept, written)
    tokens = sum(one.targets for one in made.sentences)
    about = {
        "kind": "teacher text",
        "kd": __version__,
        "teacher": task.teacher.path,
        "prompts": {"file": task.path, "sha256": task.dataset.files, "count": len(task.dataset)},
        "template": config.data.template,
        "made_of": made_of(task.source, ground),
        "processors": "server" if task.teacher.server is not None else "none",
        "filters": task.source.model_dump(mode="json", include={"min_tokens", "max_nll", "ended"}),
        "text": made.folder.name,
        "answers": len(made.sentences),
        "tokens": tokens,
        "rows": written.rows,
        "dropped": dropped,
    }
    keep_about(folder, about)
    return TextRecord(
        folder / ROWS, made.folder, len(made.sentences), written.rows, dropped, tokens, written.open, written.same,
        writing.tokens, writing.seconds,
    )  # fmt: skip


def _dropped(task: Task, made: MadeText, kept: list[Sentence], written: Written) -> dict[str, int]:
    """Count why answers are no rows."""
    faults = Counter(task.source.fault(one) for one in made.sentences)
    counts = {fault: count for fault, count in faults.items() if fault is not None}
    twice = len(made.sentences) - sum(counts.values()) - len(kept)
    return {name: count for name, count in {**counts, "twice": twice, "empty": written.empty}.items() if count}
