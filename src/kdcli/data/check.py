"""Turns a raw record into a row, or says what is wrong with it."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from kdcli.data.detect import FormName, Layout
from kdcli.data.json_rows import kind_of
from kdcli.data.tables import Record
from kdcli.errors import InputError
from kdcli.text import one_line

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
        messages: the turns before the answer, role and content, for conversations.
        choices: answers to choose from, as the row has them and unchecked; None if it has none.
        answer: the right one or its place, likewise; None if the first response is meant.
    """

    prompt: str
    responses: tuple[str, ...]
    where: str
    form: FormName = "prompt"
    context: str = ""
    messages: tuple[Mapping[str, str], ...] = ()
    choices: Any = None
    answer: Any = None

    @property
    def has_control_characters(self) -> bool:
        """Whether prompt, context or an answer holds NUL or another control character."""
        return any(_CONTROL.search(text) for text in (self.prompt, self.context, *self.responses))


def check_record(record: Record, layout: Layout) -> Row:
    """Return the row a record holds.

    Raises:
        InputError: a field is missing, empty or not text.
    """
    reader = _Reader(record, layout)
    choices = reader.optional("choices")
    row = _row(reader, layout.form.name)
    return row if choices is None else replace(row, choices=choices, answer=reader.optional("answer"))


def _row(reader: "_Reader", form: FormName) -> Row:
    if form == "messages":
        return _conversation(reader) if reader.answered else _open_conversation(reader)
    if form == "text":
        return Row("", (reader.text("text") if reader.answered else "",), reader.where, "text")
    if form == "prompt":
        return Row(reader.text("prompt"), reader.texts("response"), reader.where, "prompt")
    return Row(
        reader.text("instruction"), reader.texts("response"), reader.where, "instruction", reader.optional_text("input")
    )


class _Reader:
    """Looks fields of one record up by the layout's columns."""

    def __init__(self, record: Record, layout: Layout) -> None:
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

    def optional(self, field: str) -> Any:
        """Look up, unchecked, what a row may lack."""
        return self.fields.get(self.columns[field]) if field in self.columns else None

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
    answer = messages[last]["content"]
    row = _said(reader, messages[:last], answer)
    reader.clean(answer, f"messages[{last}].content")
    return row


def _open_conversation(reader: _Reader) -> Row:
    """Return the turns that wait for an answer: all of them, but for one that the assistant ends them with."""
    messages = _turns(reader)
    ended = bool(messages) and messages[-1]["role"] == "assistant"
    return _said(reader, messages[:-1] if ended else messages, "")


def _turns(reader: _Reader) -> list[dict[str, str]]:
    turns = reader.value("messages")
    if not isinstance(turns, list):
        raise reader.error("DATA-06", f'"messages" must be a list of role and content, got {kind_of(turns)}')
    return [_turn(reader, turn, index) for index, turn in enumerate(turns)]


def _said(reader: _Reader, before: list[dict[str, str]], answer: str) -> Row:
    if not before:
        raise reader.error("DATA-07", "nothing comes before the assistant turn")
    prompt = "\n\n".join(turn["content"] for turn in before)
    return Row(prompt, (answer,), reader.where, "messages", messages=tuple(before))


def _turn(reader: _Reader, turn: Any, index: int) -> dict[str, str]:
    if not isinstance(turn, dict) or not {"role", "content"} <= turn.keys():
        raise reader.error("DATA-05", f"messages[{index}] needs role and content")
    role = reader.clean(turn["role"], f"messages[{index}].role")
    return {"role": role, "content": reader.clean(turn["content"], f"messages[{index}].content", may_be_empty=True)}
