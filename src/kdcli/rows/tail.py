"""Rows that a teacher writes for the values of a column that have fewer rows than their quota."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdcli.config.schema import BalanceConfig, GenerateConfig
from kdcli.data.few_shot import ExampleLayout, draw, row_key
from kdcli.data.rows import Row, RowReport
from kdcli.distill.generate import Writing, check_teacher, inspect_models, open_context, prepare_task, text_source
from kdcli.errors import UsageError
from kdcli.events import Event
from kdcli.loading.session import Session
from kdcli.models.devices import prepare
from kdcli.registry.build import spec_of
from kdcli.rows.files import json_line
from kdcli.sources.teacher import TeacherSource
from kdcli.sources.teacher_text.rows import new_rows
from kdcli.sources.teacher_text.store import generator_of, teacher_text
from kdcli.storage import atomic
from kdcli.text import one_line

WRITTEN = "written"
_PROMPTS = "prompts.jsonl"
_PURPOSE = 0x7461696C  # keeps these draws apart from others of the same seed


@dataclass(frozen=True)
class Short:
    """A value with fewer rows than its quota.

    Args:
        value: of the column.
        rows: those that the file has of it.
        lacking: how many more its quota has.
    """

    value: str
    rows: Sequence[Row]
    lacking: int


@dataclass(frozen=True)
class WrittenRow:
    """A row that a teacher wrote for a value.

    Args:
        columns: of the row, by the names that the file has.
        made: where it comes from: the answer it stands in, the rows its prompt showed, the try.
        key: what is equal of two rows that differ in white space alone.
    """

    columns: dict[str, Any]
    made: dict[str, Any]
    key: tuple[str, ...]


@dataclass
class _Found:
    """What has been written for one value so far."""

    short: Short
    shown: list[tuple[Row, str]]
    rows: list[WrittenRow] = field(default_factory=list)
    answers: int = 0
    twice: int = 0
    others: int = 0

    @property
    def lacking(self) -> int:
        return self.short.lacking - len(self.rows)

    @property
    def told(self) -> str:
        """What became of the answers, for a message."""
        if not self.shown:
            return "none of its rows can be shown as one prompt and one response"
        others = f", {self.others:,} of other values" if self.others else ""
        return f"{self.answers:,} answers hold {len(self.rows):,} new rows, {self.twice:,} doubles{others}"


class TailWriter:
    """Asks a teacher for rows of short values: a few rows of the value are shown, and it goes on with another.

    What is asked and what is written lie in ``written/N`` of the stage's folder, one folder a try; the same line finds
    them again. What is written follows from the seed, the rows and the teacher alone.

    Args:
        config: of the stage; its teacher is checked, and no weight is read.
        session: what is loaded already.

    Raises:
        UsageError: there is no teacher, or a source that writes no text of prompts.
        KDError: a teacher that cannot be used.
    """

    def __init__(self, config: BalanceConfig, session: Session) -> None:
        self._config, self._session = config, session
        self._source = _source(config)
        asked = self._asked(None)
        check_teacher(asked, self._source)
        self._device = prepare(config.hardware)
        self._pair = inspect_models(asked, session)

    @property
    def made_of(self) -> dict[str, Any]:
        """What written rows follow from, besides the rows that are there."""
        teacher = self._pair.teacher
        assert teacher is not None, "one is named"
        return {
            "teacher": teacher.digest, "reader": self._pair.reader.tokenizer_digest, "source": spec_of(self._source),
            "shots": self._config.shots, "tries": self._config.tries, "precision": str(self._device.autocast),
            "template": self._config.data.template, "max_length": self._config.data.max_length,
            "max_prompt_length": self._config.data.max_prompt_length,
        }  # fmt: skip

    def write(
        self, shorts: Sequence[Short], read: RowReport, known: Iterable[Row], folder: Path, writing: Writing
    ) -> dict[str, list[WrittenRow]]:
        """Return, of each short value, at most as many new rows as it lacks.

        Args:
            shorts: the values, and how many rows each lacks.
            read: the rows of the file, and the names of their columns.
            known: rows that are not to come again.
            folder: of the stage; its lock is held.
            writing: told of the answers, and of what stays short.

        Raises:
            InterruptedRunError: stopped by a signal; every answer that was done is kept.
        """
        layout = ExampleLayout(read.rows[0].form)
        found = [_Found(one, [(row, text) for row in one.rows if (text := layout.show(row))]) for one in shorts]
        seen = set(map(row_key, known))
        for number in range(1, self._config.tries + 1):
            asked = [one for one in found if one.shown and one.lacking > 0]
            if not asked:
                break
            self._try(number, asked, layout, read.columns, seen, folder / WRITTEN / str(number), writing)
        for one in found:
            if one.lacking > 0:
                named = f'{one_line(self._config.by or "", 40)} "{one_line(one.short.value, 40)}"'
                writing.report(Event("warning", f"{named} stays {one.lacking:,} rows below its quota: {one.told}"))
        return {one.short.value: one.rows for one in found}

    def _try(
        self, number: int, asked: Sequence[_Found], layout: ExampleLayout, columns: Mapping[str, str],
        seen: set[tuple[str, ...]], folder: Path, writing: Writing,
    ) -> None:  # fmt: skip
        """Ask once for every row that is lacking, and keep what is new."""
        places = [(one, at) for one in asked for at in range(one.lacking)]
        shots = [draw(len(one.shown), self._config.shots, self._seed(number, one), at) for one, at in places]
        lines = []
        for (one, _), drawn in zip(places, shots, strict=True):
            examples = "\n\n".join(one.shown[at][1] for at in drawn)
            lines.append({"prompt": _prompt(one.short.value, examples, layout.cue), "value": one.short.value})
        atomic.make_folder(folder)
        atomic.remove_temporaries(folder)
        atomic.write_file(folder / _PROMPTS, "".join(map(json_line, lines)))
        task = prepare_task(self._asked(folder / _PROMPTS, self._seed(number)), self._session)
        for note in (*task.notes, *task.dataset.notes) if number == 1 else ():
            writing.report(Event("note", note))
        writing.report(Event("stage", "the teacher writes", total=task.answers))
        context = open_context(task, self._session, folder, writing)
        tokenizer = generator_of(context).tokenizer
        made = teacher_text(task.source, context)
        place = {f"{_PROMPTS} line {at}": at - 1 for at in range(1, len(lines) + 1)}
        passed = [one for one in made.sentences if task.source.fault(one, tokenizer) is None]
        read = new_rows(passed, layout, tokenizer, seen)
        for one in made.sentences:
            places[place[one.example.where]][0].answers += 1
        for one in read.twice:
            places[place[one.example.where]][0].twice += 1
        for row in read.rows:
            at = place[row.one.example.where]
            found = places[at][0]
            fields = layout.columns(row.parts, columns)
            if str(fields.get(self._config.by or "", found.short.value)) != found.short.value:
                found.others += 1
            elif found.lacking > 0:
                seen.add(row.key)
                shown = [found.shown[shot][0].where for shot in shots[at]]
                made = {**row.made, "teacher": task.teacher.path, "try": number, "shown": shown}
                found.rows.append(WrittenRow(fields, made, row.key))

    def _seed(self, number: int, one: _Found | None = None) -> int:
        """Return the seed of a try's answers; with a value, of what its prompts show."""
        stage = self._config.stage if one is None else f"{self._config.stage} {one.short.value}"
        text = f"{_PURPOSE} {self._config.seed} {self._source.seed} {number} {stage}"
        return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:4], "big")

    def _asked(self, prompts: Path | None, seed: int | None = None) -> GenerateConfig:
        config = self._config
        source = self._source if seed is None else self._source.model_copy(update={"seed": seed})
        path = None if prompts is None else str(prompts)
        data = config.data.model_copy(update={"train": path, "columns": {}, "limit": None})
        return GenerateConfig(
            teacher=config.teacher, student=config.student, source=spec_of(source), server=config.server, data=data,
            hardware=config.hardware,
        )  # fmt: skip


def _source(config: BalanceConfig) -> TeacherSource:
    found = text_source(config.source)
    if found.prompts != "rows" or found.agree:
        what = "rows are written behind prompts of their own, whose answers are not known"
        raise UsageError("TEXT-05", what, where="--source", fix="leave prompts and agree out")
    return found


def _prompt(value: str, examples: str, cue: str) -> str:
    """Return what the teacher is asked with: examples of a value, and the beginning of another one."""
    named = " ".join(value.split())
    return f"These are examples of {named}. Write another one in the same form.\n\n{examples}\n\n{cue}"
