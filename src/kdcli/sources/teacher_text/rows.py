"""Teacher text as rows for training, and the record of how it was made."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from kdcli.config.sections import DataConfig
from kdcli.data.columns import infer_schema
from kdcli.data.dataset import load_dataset
from kdcli.data.few_shot import ExampleLayout, Feedback, Parts, text_key
from kdcli.data.readers import Record
from kdcli.data.rows import Row, check_record, read_rows
from kdcli.end_tokens import EndTokens
from kdcli.errors import ExperimentChangedError, InputError
from kdcli.sources.completions import TeacherCompletion, completion_text
from kdcli.storage import atomic, digests, stored

ROWS = "rows.jsonl"


@dataclass(frozen=True)
class Written:
    """The rows of a file.

    Args:
        rows: how many there are.
        empty: answers without a letter, which no training takes.
        open: rows whose answer was cut; a training that reads them sees an end token there.
        same: rows that read back as the very tokens that were written.
    """

    rows: int
    empty: int
    open: int
    same: int


def original_rows(path: str | None, config: DataConfig) -> dict[str, Row]:
    """Return file and line -> the row there, as it was before a template was put around it.

    Args:
        path: the prompts' file; None for none.
        config: columns and limits.
    """
    if path is None:
        return {}
    return {row.where: row for row in read_rows(path, config, limit=config.limit, answered=False).rows}


def write_rows(
    path: Path,
    sentences: Sequence[TeacherCompletion],
    originals: Mapping[str, Row],
    tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
    ends: EndTokens,
) -> Written:
    """Write each answer as a row in the form of the row its prompt came from, and read the file back.

    Args:
        path: JSONL to write.
        sentences: the answers.
        originals: the prompts' rows; an answer that has none is a plain text.
        tokenizer: what wrote and reads them.
        config: template and length, with which they are read back.
        ends: the tokens that end an answer.

    Raises:
        InputError: no answer has a word.
    """
    texts = [completion_text(one, tokenizer) for one in sentences]
    chosen = [(one, text) for one, text in zip(sentences, texts, strict=True) if text.strip()]
    lines = [json.dumps(_row(one, text, originals), ensure_ascii=False) + "\n" for one, text in chosen]
    if not lines:
        what = f"none of the {len(texts):,} answers has a word"
        raise InputError("TEXT-04", what, where=str(path.parent), fix="look at text.jsonl below it, and at the teacher")
    atomic.write_file(path, "".join(lines))
    cut = sum(not one.ended for one, _ in chosen)
    return Written(
        len(lines), len(texts) - len(lines), cut, _same(path, [one for one, _ in chosen], tokenizer, config, ends)
    )


@dataclass(frozen=True)
class NewRow:
    """A row that a teacher wrote.

    Args:
        one: the answer that it stands in.
        parts: what it is made of.
    """

    one: TeacherCompletion
    parts: Parts

    @property
    def made(self) -> dict[str, Any]:
        """Where it comes from."""
        one = self.one
        return {"row": one.row, "answer": one.answer, "tokens": one.targets, "ended": one.ended, "nll": one.nll}

    @property
    def key(self) -> tuple[str, ...]:
        """What is equal of two rows that differ in white space alone."""
        return text_key(self.parts)


@dataclass(frozen=True)
class NewRows:
    """Rows that are found in a teacher's answers.

    Args:
        rows: those that say something new, in the order of the answers.
        unreadable: answers in which no row can be read.
        twice: the answer of each row that was there already, or that an earlier answer holds.
    """

    rows: tuple[NewRow, ...]
    unreadable: int
    twice: tuple[TeacherCompletion, ...]


def new_rows(
    sentences: Sequence[TeacherCompletion],
    layout: ExampleLayout,
    tokenizer: PreTrainedTokenizerBase,
    known: Iterable[tuple[str, ...]],
) -> NewRows:
    """Return the rows in answers; each passes the checks of rows that are read from a file.

    Args:
        sentences: the answers.
        layout: of the rows in them.
        tokenizer: what wrote them.
        known: keys, as of :func:`~kdcli.data.few_shot.text_key`, of rows that are not to come again.
    """
    seen, unreadable = set(known), 0
    found: list[NewRow] = []
    twice: list[TeacherCompletion] = []
    for one in sentences:
        parsed = layout.parse(completion_text(one, tokenizer), ended=one.ended)
        read = [NewRow(one, parts) for parts in parsed if _usable(layout, parts)]
        unreadable += not read
        for row in read:
            if row.key in seen:
                twice.append(one)
            else:
                seen.add(row.key)
                found.append(row)
    return NewRows(tuple(found), unreadable, tuple(twice))


def _usable(layout: ExampleLayout, parts: Parts) -> bool:
    """Whether a row passes the checks of rows that are read, and has no control character."""
    fields = layout.columns(parts)
    try:
        row = check_record(Record("", fields), infer_schema([*fields], {}, ""))
    except InputError:
        return False
    return not row.has_control_characters


def write_new_rows(
    path: Path, found: NewRows, layout: ExampleLayout, feedback: Feedback | None, prompts: Sequence[str]
) -> Written:
    """Write rows that a teacher wrote, each with where it comes from.

    Args:
        path: JSONL to write.
        found: the rows.
        layout: of the rows.
        feedback: what its prompt showed, if anything.
        prompts: where each prompt stands, as they were read.

    Raises:
        InputError: there is none.
    """
    if not found.rows:
        held = f"{found.unreadable:,} hold none, {len(found.twice):,} rows are doubles"
        what = f"no new row can be read in the answers: {held}"
        fix = f'let prompts end in "{layout.cue}", and look at text.jsonl below it'
        raise InputError("TEXT-04", what, where=str(path.parent), fix=fix)
    lines, number = [], {where: at for at, where in enumerate(prompts)}
    for row in found.rows:
        shown: dict[str, Any] = {}
        if feedback is not None:
            shown["feedback"] = [feedback.places[at] for at in feedback.drawn(number[row.one.example.where])]
        line = {**layout.columns(row.parts), "made": {**row.made, **shown}}
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    atomic.write_file(path, "".join(lines))
    return Written(len(lines), 0, 0, len(lines))


def _row(one: TeacherCompletion, answer: str, originals: Mapping[str, Row]) -> dict[str, Any]:
    row = originals.get(one.example.where)
    made = {"row": one.row, "answer": one.answer, "tokens": one.targets, "ended": one.ended, "nll": one.nll}
    return {**(_answered(row, answer) if row is not None else {"text": answer}), "made": made}


def _answered(row: Row, answer: str) -> dict[str, Any]:
    """Return a row's columns, its answer exchanged."""
    if row.form == "messages":
        return {"messages": [*map(dict, row.messages), {"role": "assistant", "content": answer}], **row.extras}
    if row.form == "instruction":
        return {"instruction": row.prompt, "input": row.context, "output": answer}
    return {"text": answer} if row.form == "text" else {"prompt": row.prompt, "completion": answer}


def _same(
    path: Path,
    sentences: Sequence[TeacherCompletion],
    tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
    ends: EndTokens,
) -> int:
    """Count the rows that read back as the tokens written; what is cut may be followed by an end token."""
    plain = config.model_copy(update={"columns": {}, "limit": None})
    back = {one.where: one for one in load_dataset(str(path), tokenizer, plain, ends=ends).examples}
    count = 0
    for number, one in enumerate(sentences, start=1):
        found = back.get(f"{path.name} line {number}")
        count += found is not None and found.ids[: len(one.example.ids)] == one.example.ids
    return count


# The record of a teacher's text, and how it was made.


ABOUT = "about.json"


@dataclass(frozen=True)
class TextPlan:
    """What a teacher would write.

    Args:
        teacher: folder or hub id.
        device: where it would be read.
        prompts: rows that it would answer.
        answers: how many it would write.
        tokens_at_most: of all answers.
        longest: prompt and answer together, in tokens; None if nothing bounds them.
        first_prompt: the first prompt, as the teacher would read it.
    """

    teacher: str
    device: str
    prompts: int
    answers: int
    tokens_at_most: int
    longest: int | None
    first_prompt: str


@dataclass(frozen=True)
class TextRecord:
    """A teacher's text.

    Args:
        rows: JSONL that trainings read.
        text: folder of everything that was written, before any filter.
        answers: how many there are.
        kept: rows.
        dropped: why answers are no rows -> how many.
        tokens: tokens of all answers, end tokens included.
        open: rows whose answer was cut.
        same: rows that read back as the tokens written.
        written: tokens that this call wrote.
        seconds: what that took.
    """

    rows: Path
    text: Path
    answers: int
    kept: int
    dropped: dict[str, int]
    tokens: int
    open: int
    same: int
    written: int
    seconds: float

    @property
    def speed(self) -> float:
        """Tokens per second of this call; 0 where nothing was left to write."""
        return self.written / self.seconds if self.written and self.seconds else 0.0


@dataclass(frozen=True)
class _About:
    """What is read of ``about.json``."""

    text: str


def check_same_text(folder: Path, name: str) -> None:
    """Refuse a folder whose rows come from another text.

    Args:
        folder: where rows are to be written.
        name: of the text's folder.

    Raises:
        ExperimentChangedError: TEXT-03.
        IntegrityError: its note cannot be read.
    """
    path = folder / ABOUT
    if not path.is_file():
        return
    if stored.read_record(path, _About, fix="choose another -o").text != name:
        what = "the folder holds a text of another teacher, of other end tokens, prompts or options"
        raise ExperimentChangedError("TEXT-03", what, where=str(folder), fix="choose another -o; filters may change")


def keep_about(folder: Path, about: dict[str, Any]) -> None:
    """Write how the rows came about, and the digests of both files."""
    atomic.write_file(folder / ABOUT, json.dumps(about, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    digests.write_digests(folder, (ROWS, ABOUT), "text")
