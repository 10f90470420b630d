"""Infers the row format from column names."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from kdcli.errors import InputError, UsageError
from kdcli.text import one_line

FormName = Literal["messages", "instruction", "prompt", "text", "class"]


@dataclass(frozen=True)
class RowFormat:
    """One way to lay out rows.

    Args:
        name: the form's name.
        fields: field -> the column names it may have, the first being the usual one.
        optional: fields a row may lack.
    """

    name: FormName
    fields: Mapping[str, tuple[str, ...]]
    optional: frozenset[str] = frozenset()


_CHOICES = {"choices": ("choices",), "answer": ("answer",)}
"""Answers to choose from and which of them is right; any row may have them."""

_ROW = {**_CHOICES, "teacher_trust": ("teacher_trust",), "images": ("images",)}
"""What any row with a prompt may have beside it."""

_CHAT = {
    **_ROW,
    "tools": ("tools",),
    "documents": ("documents",),
    "chat_template_kwargs": ("chat_template_kwargs",),
}
"""What a conversation may have besides its turns, for its chat template."""

FORMS = (
    RowFormat("messages", {"messages": ("messages",), **_CHAT}, frozenset(_CHAT)),
    RowFormat(
        "instruction",
        {
            "instruction": ("instruction",),
            "input": ("input", "context"),
            "response": ("output", "response", "completion", "answer"),
            **_ROW,
        },
        frozenset({"input", *_ROW}),
    ),
    RowFormat(
        "prompt",
        {"prompt": ("prompt",), "response": ("completion", "response", "output", "answer"), **_ROW},
        frozenset(_ROW),
    ),
    RowFormat("text", {"text": ("text",), "teacher_trust": ("teacher_trust",)}, frozenset({"teacher_trust"})),
    RowFormat("messages", {"messages": ("conversations", "conversation"), **_CHAT}, frozenset(_CHAT)),
)
"""Forms in the order in which they are tried."""

CLASS_FORMS = (
    RowFormat(
        "class",
        {"text": ("text",), "label": ("label",), "teacher_trust": ("teacher_trust",)},
        frozenset({"teacher_trust"}),
    ),
)
"""The form of rows for a classifier: a text, and the class that it belongs to."""


def fields_of(forms: Sequence[RowFormat]) -> tuple[str, ...]:
    """Return every field of some forms, and every column name that it may have.

    >>> fields_of(CLASS_FORMS)
    ('text', 'label', 'teacher_trust')
    """
    pairs = [(field, names) for form in forms for field, names in form.fields.items()]
    return tuple(dict.fromkeys(name for field, names in pairs for name in (field, *names)))


KNOWN = fields_of(FORMS)


@dataclass(frozen=True)
class RowSchema:
    """The form of a table and where its fields are.

    Args:
        form: the form recognised.
        columns: field -> column; an optional field that no column holds is left out.
        answered: whether rows have answers; where they need none, those they have are not read.
        unread_label: whether rows of text have a column of labels besides, which only classifiers read.
    """

    form: RowFormat
    columns: Mapping[str, str]
    answered: bool = True
    unread_label: bool = False

    @property
    def names(self) -> str:
        """The columns used, as a list in words."""
        return ", ".join(one_line(column, 40) for column in self.columns.values())

    def __str__(self) -> str:
        return f"{self.form.name} rows ({self.names})"


def infer_schema(
    columns: Sequence[str],
    mapping: Mapping[str, str],
    where: str,
    *,
    answered: bool = True,
    forms: Sequence[RowFormat] = FORMS,
) -> RowSchema:
    """Return the first form whose fields the columns hold.

    Args:
        columns: the columns there are.
        mapping: field -> column, as the user said.
        where: the file, for messages.
        answered: whether rows need answers; prompts alone do not.
        forms: the forms that are tried, in this order.

    Raises:
        UsageError: the mapping names a field that does not exist.
        InputError: a mapped column is missing, or no form fits.

    >>> print(infer_schema(["instruction", "context", "response"], {}, "train.jsonl"))
    instruction rows (instruction, context, response)
    """
    _check_mapping(columns, mapping, where, fields_of(forms))
    for form in forms:
        found = _fit(form, columns, mapping, frozenset() if answered else frozenset({"response"}))
        if found is not None:
            return RowSchema(form, found, answered, form.name == "text" and "label" in columns)
    raise _nothing_fits(columns, mapping, where, forms)


def _check_mapping(columns: Sequence[str], mapping: Mapping[str, str], where: str, known: Sequence[str]) -> None:
    for field, column in mapping.items():
        if field not in known:
            raise UsageError(
                "DATA-05",
                f'unknown field "{one_line(field, 40)}" in the column map',
                where="columns",
                fix=f"{_nearest(field, known)}use one of {', '.join(known)}",
            )
        if column not in columns:
            raise InputError(
                "DATA-05",
                f'no column "{one_line(column, 40)}" for {field}; it has {name_columns(columns)}',
                where=where,
                fix=f"{_nearest(column, columns)}--columns {field}=NAME",
            )


def _fit(
    form: RowFormat, columns: Sequence[str], mapping: Mapping[str, str], needless: frozenset[str]
) -> dict[str, str] | None:
    found: dict[str, str] = {}
    used: set[str] = set()
    for field, names in form.fields.items():
        mapped = [key for key in mapping if key in (field, *names)]
        there = [mapping[key] for key in mapped] or [name for name in names if name in columns]
        used.update(mapped)
        if there:
            found[field] = there[0]
        elif field not in form.optional | needless:
            return None
    return found if used == set(mapping) else None


def _nothing_fits(
    columns: Sequence[str], mapping: Mapping[str, str], where: str, forms: Sequence[RowFormat]
) -> InputError:
    there = name_columns(columns)
    almost: list[InputError] = []
    for form in forms:
        names = [mapping.get(field) or _first(names, columns) for field, names in form.fields.items()]
        lacking = [field for field, name in zip(form.fields, names, strict=True) if not name]
        lacking = [field for field in lacking if field not in form.optional]
        if any(names) and len(lacking) == 1:
            usual = form.fields[lacking[0]][0]
            near = difflib.get_close_matches(usual, columns, n=1, cutoff=0.6)
            error = InputError(
                "DATA-05",
                f'field "{usual}" is missing; the columns are {there}',
                where=where,
                fix=f"rename the column, or --columns {usual}={near[0] if near else 'NAME'}",
            )
            almost.insert(0 if near else len(almost), error)
    if almost:
        return almost[0]
    known, named = fields_of(forms), {form.name: _needed(form) for form in reversed(forms)}
    guesses = {near[0]: column for column in columns if (near := difflib.get_close_matches(column, known, 1, 0.75))}
    if guesses:
        fix = "did you mean --columns " + ",".join(f"{field}={one_line(c, 40)}" for field, c in guesses.items()) + "?"
    else:
        fix = "say which is which, as in --columns prompt=question,completion=answer"
        fix = fix if forms is FORMS else "call the columns text and label"
    return InputError(
        "DATA-05",
        f"columns {there} are no known form ({'; '.join(reversed(named.values()))})",
        where=where,
        fix=fix,
    )


def _needed(form: RowFormat) -> str:
    """Name the columns that a form needs, each by its usual name.

    >>> [_needed(form) for form in FORMS[1:4]], _needed(CLASS_FORMS[0])
    (['instruction and output', 'prompt and completion', 'text'], 'text and label')
    """
    return " and ".join(names[0] for field, names in form.fields.items() if field not in form.optional)


def _first(names: Iterable[str], columns: Sequence[str]) -> str | None:
    return next((name for name in names if name in columns), None)


def _nearest(word: str, words: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(words), n=1, cutoff=0.6)
    return f'did you mean "{one_line(near[0], 40)}"? ' if near else ""


def name_columns(columns: Sequence[str]) -> str:
    """List column names, at most eight of them.

    >>> name_columns(["a", "b"])
    'a, b'
    """
    shown = [one_line(column, 40) for column in columns[:8]]
    more = f" and {len(columns) - 8} more" if len(columns) > 8 else ""
    return (", ".join(shown) or "none") + more
