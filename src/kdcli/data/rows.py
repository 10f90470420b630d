"""Reads rows of text from files, saved folders and the hub, and checks every one."""

import difflib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kdcli.config.sections import DataConfig
from kdcli.data.columns import CLASS_FORMS, FORMS, FormName, RowFormat, RowSchema, fields_of, infer_schema
from kdcli.data.files import inspect_path
from kdcli.data.parquet import open_hub, open_parquet, open_saved
from kdcli.data.readers import Record, Records, Table, counted, kind_of, open_csv, open_json, short_place
from kdcli.errors import InputError
from kdcli.storage import stored
from kdcli.text import one_line

__all__ = ["Row", "RowReport", "read_rows"]


# Turns a raw record into a row, or says what is wrong with it.


_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_DROP = "repair the row, or leave such rows out with --skip-bad"


@dataclass(frozen=True)
class Row:
    """One example as text.

    Args:
        prompt: prompt, instruction, or the turns before the answer; empty for plain text.
        responses: the answers; several are references of equal standing; one empty text where none is asked for.
        where: file and line, for messages.
        form: how the row was laid out.
        context: what an instruction is about (Alpaca's input); empty if there is none.
        messages: the turns before the answer, for conversations: role, content, and every other key they have.
        turn: the turn that holds the answer, likewise; None where none is asked for.
        extras: what else a chat template may read, by its name there: tools, documents and the like.
        choices: answers to choose from, as the row has them and unchecked; None if it has none.
        answer: the right one or its place, likewise; None if the first response is meant.
        teacher_trust: how far the teacher is trusted on the row, from 0 to 1.
        images: paths of the prompt's images, relative to the folder of the file; empty for a row of text alone.
        feedback: what a template puts in place of ``{feedback}``; None leaves it as it stands.
    """

    prompt: str
    responses: tuple[str, ...]
    where: str
    form: FormName = "prompt"
    context: str = ""
    messages: tuple[Mapping[str, Any], ...] = ()
    turn: Mapping[str, Any] | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)
    choices: Any = None
    answer: Any = None
    teacher_trust: float = 1.0
    images: tuple[str, ...] = ()
    feedback: str | None = field(default=None, repr=False)

    @property
    def has_control_characters(self) -> bool:
        """Whether prompt, context or an answer holds NUL or another control character."""
        return any(_CONTROL.search(text) for text in (self.prompt, self.context, *self.responses))


def check_record(record: Record, layout: RowSchema) -> Row:
    """Return the row a record holds.

    Raises:
        InputError: a field is missing, empty or not text.
    """
    reader = _Reader(record, layout)
    choices = reader.optional("choices")
    row = _row(reader, layout.form.name)
    if choices is not None:
        row = replace(row, choices=choices, answer=reader.optional("answer"))
    images = reader.images()
    if images:
        row = replace(row, images=images)
    trust = reader.trust()
    return row if trust == 1.0 else replace(row, teacher_trust=trust)


def _row(reader: "_Reader", form: FormName) -> Row:
    if form == "messages":
        return _conversation(reader) if reader.answered else _open_conversation(reader)
    if form == "class":
        return Row(reader.text("text"), (reader.label(),), reader.where, "class")
    if form == "text":
        return Row("", (reader.text("text") if reader.answered else "",), reader.where, "text")
    if form == "prompt":
        return Row(reader.text("prompt"), reader.texts("response"), reader.where, "prompt")
    return Row(
        reader.text("instruction"), reader.texts("response"), reader.where, "instruction", reader.optional_text("input")
    )


class _Reader:
    """Looks fields of one record up by the layout's columns."""

    def __init__(self, record: Record, layout: RowSchema) -> None:
        self.where = record.where
        self.fields = record.fields
        self.columns = layout.columns
        self.names = layout.form.fields
        self.answered = layout.answered

    def error(self, code: str, what: str, fix: str = _DROP) -> InputError:
        return InputError(code, what, where=self.where, fix=fix)

    def value(self, field: str) -> Any:
        column = self.columns[field]
        if column in self.fields:
            return self.fields[column]
        near = difflib.get_close_matches(column, list(self.fields), n=1, cutoff=0.6)
        hint = f' (it has "{one_line(near[0], 40)}")' if near else ""
        raise self.error("DATA-05", f'field "{column}" is missing{hint}', f"add it, or {_DROP}")

    def text(self, field: str) -> str:
        return self.clean(self.value(field), self.columns[field])

    def label(self) -> str:
        """Return the class of a row: text, or a whole number."""
        value = self.value("label")
        return str(value) if type(value) is int else self.clean(value, self.columns["label"]).strip()

    def optional(self, field: str) -> Any:
        """Look up, unchecked, what a row may lack."""
        return self.fields.get(self.columns[field]) if field in self.columns else None

    def trust(self) -> float:
        """Return how far the teacher is trusted on the row; 1 where it does not say."""
        value = self.optional("teacher_trust")
        if value is None or value == "":
            return 1.0
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = -1.0
        if not 0.0 <= number <= 1.0:
            what = f'"{self.columns["teacher_trust"]}" must be a number from 0 to 1, got {one_line(str(value), 40)}'
            raise self.error("DATA-06", what)
        return number

    def images(self) -> tuple[str, ...]:
        """Return the paths of a row's images; none where it does not say."""
        value = self.optional("images")
        if value is None or value in ("", []):
            return ()
        paths = [value] if isinstance(value, str) else value
        if not isinstance(paths, list) or not all(isinstance(one, str) and one.strip() for one in paths):
            what = f'"{self.columns["images"]}" must be a list of paths, got {kind_of(value)}'
            raise self.error("DATA-06", what)
        return tuple(self.clean(one, self.columns["images"]) for one in paths)

    def optional_text(self, field: str) -> str:
        """Look a field up that this row, or the rows the layout was taken from, may lack."""
        names = [self.columns[field]] if field in self.columns else self.names[field]
        name = next((name for name in names if self.fields.get(name) is not None), None)
        text = self.clean(self.fields[name], name, may_be_empty=True) if name else ""
        return text if text.strip() else ""

    def texts(self, field: str) -> tuple[str, ...]:
        if not self.answered:
            return ("",)
        value, column = self.value(field), self.columns[field]
        choices = self.optional("choices")
        if type(value) is int and isinstance(choices, list) and 0 <= value < len(choices):
            value = choices[value]  # the place of the right answer stands for its text
        if not isinstance(value, list):
            return (self.clean(value, column),)
        if not value:
            raise self.error("DATA-07", f'empty list in "{column}"')
        return tuple(self.clean(item, f"{column}[{index}]") for index, item in enumerate(value))

    def clean(self, value: Any, name: str, *, may_be_empty: bool = False) -> str:
        if not isinstance(value, str):
            raise self.error("DATA-06", f'"{one_line(name, 40)}" must be text, got {kind_of(value)}')
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise self.error(
                "DATA-08", f'"{one_line(name, 40)}" holds half a surrogate pair at character {error.start + 1}'
            ) from error
        if not may_be_empty and not value.strip():
            raise self.error("DATA-07", f'empty "{one_line(name, 40)}"')
        return value


def _conversation(reader: _Reader) -> Row:
    messages = _turns(reader)
    answers = [index for index, turn in enumerate(messages) if turn["role"] == "assistant"]
    if not answers:
        raise reader.error("DATA-07", "no assistant turn to learn from")
    last = answers[-1]
    row = _said(reader, messages[:last], messages[last])
    if not any(value for name, value in messages[last].items() if name not in ("role", "content")):
        reader.clean(text_of(messages[last].get("content")), f"messages[{last}].content")
    return row


def _open_conversation(reader: _Reader) -> Row:
    """Return the turns that wait for an answer: all of them, but for one that the assistant ends them with."""
    messages = _turns(reader)
    ended = bool(messages) and messages[-1]["role"] == "assistant"
    return _said(reader, messages[:-1] if ended else messages, None)


def _turns(reader: _Reader) -> list[dict[str, Any]]:
    turns = reader.value("messages")
    if not isinstance(turns, list):
        raise reader.error("DATA-06", f'"messages" must be a list of role and content, got {kind_of(turns)}')
    return [_turn(reader, turn, index) for index, turn in enumerate(turns)]


def _said(reader: _Reader, before: list[dict[str, Any]], turn: dict[str, Any] | None) -> Row:
    if not before:
        raise reader.error("DATA-07", "nothing comes before the assistant turn")
    prompt = "\n\n".join(text_of(one.get("content")) or "" for one in before)
    answer = (text_of(turn.get("content")) or "") if turn is not None else ""
    return Row(
        prompt, (answer,), reader.where, "messages", messages=tuple(before), turn=turn, extras=_extras(reader)
    )  # fmt: skip


def _extras(reader: _Reader) -> dict[str, Any]:
    """Return what a row gives to its chat template besides the turns."""
    found = {name: reader.optional(name) for name in ("tools", "documents")}
    for name, value in found.items():
        if isinstance(value, str):  # a table's column cannot hold objects of different forms
            found[name] = _parsed(reader, value, name)
    more = reader.optional("chat_template_kwargs") or {}
    if not isinstance(more, dict):
        raise reader.error("DATA-06", f'"chat_template_kwargs" must be an object, got {kind_of(more)}')
    return {name: value for name, value in {**found, **more}.items() if value is not None}


def _parsed(reader: _Reader, text: str, name: str) -> Any:
    try:
        return stored.parse(text)
    except ValueError as error:
        raise reader.error("DATA-06", f'"{name}" must be a list, or text that holds one as JSON') from error


def _turn(reader: _Reader, turn: Any, index: int) -> dict[str, Any]:
    """Return a turn with every key that says something; one in ShareGPT's words in the usual ones."""
    name = f"messages[{index}]"
    if isinstance(turn, dict) and "role" not in turn and {"from", "value"} <= turn.keys():
        turn = {**turn, "role": _role(reader, turn["from"], name), "content": turn["value"]}
        turn = {key: value for key, value in turn.items() if key not in ("from", "value")}
    said = {key: value for key, value in turn.items() if value is not None} if isinstance(turn, dict) else {}
    more = {key for key, value in said.items() if key not in ("role", "content") and value not in ("", [], {})}
    if "role" not in said or not ("content" in said or "content" in turn or more):
        raise reader.error("DATA-05", f"{name} needs role and content")
    reader.clean(said["role"], f"{name}.role")
    if isinstance(said.get("content"), list):
        _parts(reader, said["content"], f"{name}.content")
    elif "content" in said or not more:
        reader.clean(turn.get("content"), f"{name}.content", may_be_empty=True)
    elif "content" in turn:
        said["content"] = None  # as given: a turn without text, with tool calls
    return said


def _parts(reader: _Reader, parts: list[Any], name: str) -> None:
    """Refuse a turn's parts that are neither a text nor the place of an image."""
    if "images" not in reader.columns:
        raise reader.error("DATA-06", f'"{name}" must be text, got a list')
    for number, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            reader.clean(part.get("text"), f"{name}[{number}].text", may_be_empty=True)
        elif kind != "image" or set(part) != {"type"}:
            what = f'{name}[{number}] must be {{"type": "text", "text": ...}} or {{"type": "image"}}'
            raise reader.error("DATA-06", what, f'give the paths in "images", or {_DROP}')


def text_of(content: Any) -> Any:
    """Return the text of a turn's content: of a list of parts, that of its texts.

    >>> text_of([{"type": "image"}, {"type": "text", "text": "What is it?"}]), text_of("What?")
    ('What is it?', 'What?')
    """
    if not isinstance(content, list):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")


_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
    "bing": "assistant", "bard": "assistant", "model": "assistant", "system": "system", "tool": "tool",
    "observation": "tool", "function_response": "tool",
}  # fmt: skip
"""ShareGPT's role names, and the usual ones."""


def _role(reader: _Reader, sender: Any, name: str) -> str:
    known = _ROLES.get(reader.clean(sender, f"{name}.from").lower())
    if known is None:
        what = f'{name}.from is "{one_line(sender, 40)}"; known are {", ".join(_ROLES)}'
        raise reader.error("DATA-06", what, f"rename it, or {_DROP}")
    return known


_PEEK = 100
_SHOWN = 5


@dataclass(frozen=True)
class RowReport:
    """The rows of a data set and what was met on the way.

    Args:
        rows: the good rows, in file order.
        bad: one line for each row left out.
        format: what the rows were recognised as.
        files: the files read.
        digest: sha256 over the files' bytes.
        notes: sentences worth showing.
        columns: field -> the column that rows have it from.
    """

    rows: tuple[Row, ...]
    bad: tuple[str, ...]
    format: str
    files: tuple[str, ...]
    digest: str
    notes: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)


def read_rows(
    path: str,
    config: DataConfig,
    *,
    limit: int | None = None,
    splits: Sequence[str] = ("train",),
    answered: bool = True,
    forms: Sequence[RowFormat] = FORMS,
) -> RowReport:
    """Read and check rows.

    Args:
        path: .jsonl(.gz), .json, .csv, .tsv or .parquet file, a folder saved by ``datasets``, or a hub id.
        config: column map and whether bad rows are left out.
        limit: read no further than this many good rows.
        splits: split to take where there are several, in order of preference.
        answered: whether rows need answers; where they need none, those they have are not read.
        forms: what rows may look like.

    Raises:
        InputError: the file, or with ``skip_bad`` off any row, cannot be used.
        MachineError: not permitted.
    """
    table = _open(path, config, splits, forms=forms)
    layout, records = _recognise(table, config, answered, forms)
    gathered = _gather(records, layout, limit, config.skip_bad)
    if gathered.bad and not config.skip_bad:
        raise _several(gathered.bad)
    if not gathered.rows:
        counted = f"; all {len(gathered.bad)} are bad, the first: {gathered.bad[0].what}" if gathered.bad else ""
        raise InputError("DATA-02", f"0 usable rows{counted}", where=path, fix="give a file with at least one row")
    return RowReport(
        tuple(gathered.rows),
        tuple(f"{error.where}: {error.what}" for error in gathered.bad),
        str(layout),
        table.files,
        table.digest,
        (*table.notes, *_notes(table.name, layout, gathered, config.task)),
        layout.columns,
    )


def raw_records(path: str, config: DataConfig, *, splits: Sequence[str] = ("train",)) -> Table:
    """Open a data set with all its columns, those that no row is made of too; its records are unchecked.

    A row of :func:`read_rows` and its record have the same ``where``.

    Args:
        path: as for :func:`read_rows`.
        config: column map.
        splits: as for :func:`read_rows`.

    Raises:
        InputError: the file cannot be used.
        MachineError: not permitted.
    """
    return _open(path, config, splits, every_column=True)


def _open(
    path: str,
    config: DataConfig,
    splits: Sequence[str],
    *,
    every_column: bool = False,
    forms: Sequence[RowFormat] = FORMS,
) -> Table:
    found, known = inspect_path(path), {*fields_of((*forms, *CLASS_FORMS)), *config.columns.values()}
    if found.kind == "parquet":
        return open_parquet(found.path, None if every_column else {*known, "id"})
    if found.kind == "saved":
        return open_saved(found.path, splits)
    if found.kind == "hub":
        return open_hub(path, splits)
    return open_csv(found) if found.kind in ("csv", "tsv") else open_json(found, known)


def _recognise(
    table: Table, config: DataConfig, answered: bool, forms: Sequence[RowFormat]
) -> tuple[RowSchema, Records]:
    """Detect the form from a header, or from the first rows where there is none."""
    records = table.records
    columns = table.columns
    if columns is None:
        first: list[Record | InputError] = list(itertools.islice(records, _PEEK))
        good = [item for item in first if isinstance(item, Record)]
        if not good:
            raise _several([item for item in first if isinstance(item, InputError)] or [_no_rows(table)])
        columns = tuple(dict.fromkeys(name for item in good for name in item.fields))
        records = itertools.chain(first, records)
    return infer_schema(columns, config.columns, table.name, answered=answered, forms=forms), records


def _no_rows(table: Table) -> InputError:
    return InputError("DATA-02", "the file holds no rows", where=table.name, fix="give a file with at least one row")


@dataclass
class _Gathered:
    rows: list[Row] = field(default_factory=list)
    bad: list[InputError] = field(default_factory=list)


def _gather(records: Records, layout: RowSchema, limit: int | None, skip_bad: bool) -> _Gathered:
    gathered = _Gathered()
    for item in _checked(records, layout):
        if isinstance(item, InputError):
            gathered.bad.append(item)
            continue
        gathered.rows.append(item)
        if limit is not None and len(gathered.rows) + (0 if skip_bad else len(gathered.bad)) >= limit:
            break
    return gathered


def _checked(records: Records, layout: RowSchema) -> Iterator[Row | InputError]:
    seen: dict[Any, str] = {}
    for item in records:
        if isinstance(item, InputError):
            yield item
            continue
        try:
            row = check_record(item, layout)
            _check_id(item, seen)
        except InputError as error:
            yield error
        else:
            yield row


def _check_id(record: Record, seen: dict[Any, str]) -> None:
    key = record.fields.get("id")
    if not isinstance(key, str | int):
        return
    first = seen.setdefault(key, record.where)
    if first != record.where:
        raise InputError(
            "DATA-19", f'id "{str(key)[:40]}" was already at {first}', where=record.where, fix="give each row its own"
        )


def _several(errors: Sequence[InputError]) -> InputError:
    """Join the errors of several rows into one: the first in full, a few more by name, and the count."""
    first, others = errors[0], errors[1:_SHOWN]
    if not others:
        return first
    more = "; ".join(f"{short_place(error.where)}: {error.what}" for error in others)
    dots = "; …" if len(errors) > _SHOWN else ""
    return InputError(
        first.code, f"{first.what} ({len(errors)} bad rows in all; {more}{dots})", where=first.where, fix=first.fix
    )


def _notes(name: str, layout: RowSchema, gathered: _Gathered, task: str) -> Iterable[str]:
    yield f"{name}: {counted(len(gathered.rows), layout.form.name + ' row')} ({layout.names})"
    if layout.unread_label and task != "text":
        yield (
            f"{name}: the labels are not read, the student learns the texts; a student that is a classifier learns "
            "the labels"
        )
    if gathered.bad:
        first = "; ".join(f"{short_place(error.where)}: {error.what}" for error in gathered.bad[:_SHOWN])
        yield f"{name}: {counted(len(gathered.bad), 'bad row')} left out ({first})"
    odd = [row.where for row in gathered.rows if row.has_control_characters]
    if odd:
        rows = counted(len(odd), "row")
        yield f"{name}: {rows} with control characters, kept as they are (first: {short_place(odd[0])})"
