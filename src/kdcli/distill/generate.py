"""``kd generate``: a teacher's answers to prompts as rows for training."""

import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from kdcli.config.schema import GenerateConfig
from kdcli.config.sections import TrainConfig
from kdcli.data.dataset import Role
from kdcli.data.few_shot import ExampleLayout, Feedback, text_key
from kdcli.data.rows import read_rows
from kdcli.data.templates import FEEDBACK
from kdcli.data.tokenize import Example, TokenDataset
from kdcli.distill.compat import wordless
from kdcli.errors import InputError, InterruptedRunError, UsageError, raise_all
from kdcli.events import Event, Report
from kdcli.loading.info import ModelInfo, ModelPair, require_single
from kdcli.loading.session import Session, check_data_path
from kdcli.loading.splits import rows_of_teacher
from kdcli.models.devices import Device, prepare
from kdcli.models.load import positions_stated
from kdcli.models.tokenizer import shared_vocabulary
from kdcli.remote.address import is_url
from kdcli.signals import StopRequest
from kdcli.sources.base import SourceContext
from kdcli.sources.build import build_source, tail_of
from kdcli.sources.completions import TeacherCompletion
from kdcli.sources.teacher import TeacherSource
from kdcli.sources.teacher_text.remote import RemoteGenerator
from kdcli.sources.teacher_text.rows import (
    ROWS,
    TextPlan,
    TextRecord,
    check_same_text,
    keep_about,
    new_rows,
    original_rows,
    write_new_rows,
    write_rows,
)
from kdcli.sources.teacher_text.store import (
    FILTERS,
    TeacherText,
    folder_name,
    generator_of,
    made_of,
    prompts_of,
    teacher_text,
)
from kdcli.storage import atomic, lock
from kdcli.storage.locate import model_of
from kdcli.students.made import is_made
from kdcli.text import one_line
from kdcli.version import __version__

# From settings to a source and the ground it stands on, cheapest checks first.


@dataclass(frozen=True)
class Task:
    """What is to be written, before weights are read.

    Args:
        source: how the teacher writes.
        teacher: the teacher.
        reader: whose tokenizer reads the prompts, and the words of a server.
        dataset: the prompts, or as many first tokens as texts are wanted.
        vocab: real ids.
        longest: tokens that prompt and answer may have, as far as settings say; None for any number.
        device: where it computes.
        path: the prompts' file; None for none.
        notes: what to know about the models' tokens.
        feedback: rows of which each prompt shows a few; None for none.
    """

    source: TeacherSource
    teacher: ModelInfo
    reader: ModelInfo
    dataset: TokenDataset
    vocab: int
    longest: int | None
    device: Device
    path: str | None
    notes: tuple[str, ...] = ()
    feedback: Feedback | None = None

    @property
    def answers(self) -> int:
        """Answers to be written in all."""
        return len(self.dataset) * self.source.answers

    def context(self, folder: Path) -> SourceContext:
        """Return the source context without its teacher."""
        return SourceContext(
            self.dataset, TrainConfig(), 0, vocab=self.vocab, longest=self.longest, autocast=self.device.autocast,
            folder=folder, feedback=None if self.feedback is None else self.feedback.digest,
        )  # fmt: skip


def prepare_task(config: GenerateConfig, session: Session) -> Task:
    """Check everything that can be checked before weights are read.

    Raises:
        UsageError: another source than the teacher's, no prompts, or prompts and a count.
        InputError: rows, tokenizers or model folders that cannot be used.
        MachineError: the device is missing.
    """
    source = _source(config)
    check_teacher(config, source)
    path = None if config.data.train is None else check_data_path(config.data.train, "--data")
    feedback = _feedback(config, source)
    device = prepare(config.hardware)
    pair = inspect_models(config, session)
    teacher, across = pair.teacher, pair.teacher_vocab is not None
    assert teacher is not None, "one is named"
    dataset = _prompts(config, path, pair, session, role="train" if source.agree else "prompts", feedback=feedback)
    vocab, reader = pair.teacher_vocab or pair.vocab, teacher if across else pair.reader
    own = (config.teacher, _student(config))
    longest = positions_stated(model_of(teacher.path)) if across else _longest(config, own)
    return Task(source, teacher, reader, dataset, vocab, longest, device, path, _notes(pair, teacher), feedback)


def check_teacher(config: GenerateConfig, source: TeacherSource) -> None:
    """Refuse what cannot write, before anything is read.

    Args:
        config: teacher and student.
        source: how the teacher writes.

    Raises:
        UsageError: no teacher, several, or one behind a server that cannot be asked so.
    """
    if config.teacher is None:
        raise UsageError("CLI-20", "no teacher", where="--teacher", fix="give a folder or a hub id")
    require_single(config.teacher, "one teacher writes a text", "--teacher", "give one of them")
    if is_url(config.teacher):
        _check_served(source, _student(config))


def _student(config: GenerateConfig) -> str | None:
    return None if config.student is None or is_made(config.student) else config.student


def inspect_models(config: GenerateConfig, session: Session) -> ModelPair:
    """Return the teacher and who reads its prompts: the student that is named, else the teacher itself.

    Raises:
        KDError: a model that cannot be used, or a server that cannot be asked.
    """
    assert config.teacher is not None, "checked before"
    student = _student(config)
    if student is not None:
        return session.pair(student, config.teacher, server=config.server, across=True)
    teacher = session.inspect(config.teacher)
    real = shared_vocabulary(teacher.tokenizer, teacher.tokenizer, teacher.rows, teacher.rows)
    return ModelPair(config.teacher, teacher, teacher, real)


def _feedback(config: GenerateConfig, source: TeacherSource) -> Feedback | None:
    """Return the rows that prompts show, where the template has a place for them."""
    if config.into == "rows" and source.agree:
        what = "agree compares an answer with that of its row, and new rows have no such row"
        raise UsageError("TEXT-05", what, where="--source", fix="leave agree out")
    holds = FEEDBACK in config.data.template
    if config.feedback is None:
        if holds:
            what = f"the template says {FEEDBACK}, and no rows are given for it"
            raise UsageError("TEXT-05", what, where="--template", fix="give --feedback FILE, or take it out")
        return None
    if source.prompts != "rows":
        what = "a text from BOS has no prompt that could show rows"
        raise UsageError("TEXT-05", what, where="--feedback", fix="leave it out, or give prompts with --data")
    if not holds:
        fix = r'give a text that holds both, as in --template "{instruction}\n{feedback}\n"'
        raise UsageError("TEXT-05", f"the template has no {FEEDBACK}", where="--template", fix=fix)
    read = read_rows(check_data_path(config.feedback, "--feedback"), config.data)
    layout = ExampleLayout(read.rows[0].form)
    shown = {row.where: text for row in read.rows if (text := layout.show(row))}
    if not shown:
        what = "none of the rows can be shown as prompt and response"
        raise InputError("TEXT-06", what, where=config.feedback, fix="give rows of one prompt and one response each")
    return Feedback([*shown.values()], [*shown], config.shots, source.seed, read.digest, layout.form)


def _notes(pair: ModelPair, teacher: ModelInfo) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*pair.notes, *teacher.writing_notes]))


def _prompts(
    config: GenerateConfig, path: str | None, pair: ModelPair, session: Session, *, role: Role,
    feedback: Feedback | None,
) -> TokenDataset:  # fmt: skip
    """Return the prompts as the teacher reads them, each that the student can read too; answers only where needed."""
    if path is None:
        nothing = Example((pair.reader.ends.default,), 1, "", (), "no prompt")
        return TokenDataset((nothing,) * (config.count or 1))
    own = session.data(path, pair.reader, config.data, role=role, feedback=feedback)
    return rows_of_teacher(pair, own, config.data, session, role=role, feedback=feedback) or own


def _source(config: GenerateConfig) -> TeacherSource:
    found = text_source(config.source)
    if config.data.train is None and found.prompts == "rows":
        fix = "give --data, or --source teacher:prompts=bos with --count N"
        raise UsageError("CLI-20", "there are no prompts", where="--data", fix=fix)
    if (config.data.train is None) != (config.count is not None):
        what = "prompts=bos without rows needs a number of texts" if config.count is None else "rows say how many texts"
        fix = "give --count N" if config.count is None else "leave --count out, or use --limit"
        raise UsageError("TEXT-02", what, where="--count", fix=fix)
    return found


def text_source(spec: str) -> TeacherSource:
    """Return how a teacher writes.

    Args:
        spec: as typed.

    Raises:
        UsageError: it needs a training, or does not exist.
    """
    found: Any = build_source(spec)
    if not found.needs_no_training:
        what = f"@{one_line(found.name)} needs a training; a text by itself is the teacher's"
        raise UsageError("TEXT-01", what, where="--source", fix="give teacher with options, as teacher:decode=beam")
    return found


def _check_served(source: TeacherSource, student: str | None) -> None:
    raise_all([*wordless(source, f"--source {tail_of(source).removeprefix('@')}")])
    if student is None:
        what = "a server has no tokenizer to read its text with"
        raise UsageError("SERVE-10", what, where="--student", fix="give the folder of the student that will learn them")


def _longest(config: GenerateConfig, models: tuple[str | None, ...]) -> int:
    """Return how long a text may be, so that every model named can read it."""
    stated = [positions_stated(model_of(path)) for path in models if path is not None and not is_url(path)]
    return min(limit for limit in (config.data.max_length, *stated) if limit is not None)


def generate(
    config: GenerateConfig, report: Report, *, command: str = "", session: Session | None = None
) -> TextRecord:
    """Generate a teacher's missing answers, and write those that pass the filters as rows.

    Args:
        config: teacher, prompts, decoding; ``output`` is the folder, which a run's ``data.teacher_text`` may name.
        report: called with progress events.
        command: what to type to go on after an interruption.
        session: what is loaded already.

    Raises:
        KDError: of the kind that fits; a mistake in the settings is found before weights are read.
        InterruptedRunError: stopped by a signal; every answer that was done is kept.
    """
    session = session or Session()
    task = prepare_task(config, session)
    if config.output is None:
        raise UsageError("CLI-20", "no folder", where="-o", fix="give one, such as -o text")
    folder = Path(config.output)
    for note in (*task.notes, *task.dataset.notes):
        report(Event("note", note))
    atomic.make_folder(folder)
    with lock.hold(folder), StopRequest() as stop:
        atomic.remove_temporaries(folder)
        writing = Writing(report, stop, command)
        context = open_context(task, session, folder, writing)
        name = folder_name(task.source, context, prompts_of(task.source, context))
        check_same_text(folder, name)
        report(Event("stage", "the teacher writes", total=task.answers))
        made = teacher_text(task.source, context)
        return _laid_out(config, task, context, made, folder, writing)


def open_context(task: Task, session: Session, folder: Path, writing: "Writing") -> SourceContext:
    """Return the source context with its teacher, which is loaded now, or the client of its server.

    Args:
        task: what is to be written.
        session: what is loaded already.
        folder: where the text is kept.
        writing: told of every token and answer.
    """
    context = replace(task.context(folder), report=writing.count_tokens, progress=writing.progress)
    if task.teacher.server is not None:
        return replace(context, generator=RemoteGenerator(task.teacher.server, task.reader))
    return replace(context, teacher=session.load_teacher(task.teacher.path, task.device.device))


def plan_generate(config: GenerateConfig) -> TextPlan:
    """Return what would be generated; nothing is written, no weight is read."""
    task = prepare_task(config, Session())
    return TextPlan(
        teacher=task.teacher.path,
        device=task.device.description,
        prompts=len(task.dataset),
        answers=task.answers,
        tokens_at_most=task.answers * task.source.max_new_tokens,
        longest=task.longest,
        first_prompt=task.dataset.examples[0].prompt,
    )


class Writing:
    """Counts and reports a teacher's generated tokens, and stops at a signal.

    Args:
        report: called with progress events.
        stop: the request to stop.
        command: what to type to go on.
    """

    def __init__(self, report: Report, stop: StopRequest, command: str) -> None:
        self.report, self._stop, self._command = report, stop, command
        self._done = self._total = 0
        self._started: float | None = None
        self.tokens, self.seconds = 0, 0.0

    def count_tokens(self, tokens: int) -> None:
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
                self.report(Event("note", f"{done:,} of {total:,} answers are there already"))
        self._done, self._total, self.seconds = done, total, time.monotonic() - self._started
        values = {"tokens/s": rate} if rate else {}
        self.report(Event("progress", what, done=done, total=total, values=values))


def _laid_out(
    config: GenerateConfig, task: Task, context: SourceContext, made: TeacherText, folder: Path, writing: Writing
) -> TextRecord:
    """Write the rows and the note on them."""
    assert made.folder is not None, "a folder was given"
    generator = generator_of(context)
    kept = task.source.kept(made, generator.tokenizer)
    if config.into == "rows":
        layout = ExampleLayout(task.feedback.form) if task.feedback is not None else ExampleLayout()
        found = new_rows(kept, layout, generator.tokenizer, _shown_keys(task, layout))
        prompts = [*original_rows(task.path, config.data)]
        written = write_new_rows(folder / ROWS, found, layout, task.feedback, prompts)
        counts = {"unreadable": found.unreadable, "rows twice": len(found.twice)}
    else:
        written = write_rows(
            folder / ROWS, kept, original_rows(task.path, config.data), generator.tokenizer, config.data, generator.ends
        )
        counts = {"empty": written.empty}
    dropped = _dropped(task, made, kept, counts, generator.tokenizer)
    tokens = sum(one.targets for one in made.sentences)
    about = {
        "kind": "teacher text",
        "kd": __version__,
        "teacher": task.teacher.path,
        "prompts": {"file": task.path, "sha256": task.dataset.files, "count": len(task.dataset)},
        "template": config.data.template,
        "made_of": made_of(task.source, context),
        "processors": "server" if task.teacher.server is not None else "none",
        "filters": task.source.model_dump(mode="json", include=set(FILTERS)),
        "text": made.folder.name,
        "answers": len(made.sentences),
        "tokens": tokens,
        "rows": written.rows,
        "dropped": dropped,
        **({"into": config.into} if config.into != "answers" else {}),
        **({} if task.feedback is None else {"feedback": {"file": config.feedback, "shots": config.shots}}),
    }
    keep_about(folder, about)
    return TextRecord(
        folder / ROWS, made.folder, len(made.sentences), written.rows, dropped, tokens, written.open, written.same,
        writing.tokens, writing.seconds,
    )  # fmt: skip


def _shown_keys(task: Task, layout: ExampleLayout) -> list[tuple[str, ...]]:
    """Return the keys of the rows that prompts showed, which are not to come again."""
    shown = () if task.feedback is None else task.feedback.shown
    return [text_key(parts) for text in shown for parts in layout.parse(text, ended=True)]


def _dropped(
    task: Task,
    made: TeacherText,
    kept: list[TeacherCompletion],
    more: dict[str, int],
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, int]:
    """Count why answers are no rows."""
    faults = Counter(task.source.fault(one, tokenizer) for one in made.sentences)
    counts = {fault: count for fault, count in faults.items() if fault is not None}
    twice = len(made.sentences) - sum(counts.values()) - len(kept)
    return {name: count for name, count in {**counts, "twice": twice, **more}.items() if count}
