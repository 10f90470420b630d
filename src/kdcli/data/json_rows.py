"""Reads JSONL and JSON, telling for each bad row where it is and why."""

import itertools
from collections.abc import Collection, Iterable
from contextlib import closing
from typing import Any

from kdcli import stored
from kdcli.data.files import Found, digest_files
from kdcli.data.lines import BOM, decode_text, raw_lines, whole_file
from kdcli.data.tables import Record, Records, Table
from kdcli.errors import InputError
from kdcli.text import one_line


def open_json(found: Found, known: Collection[str] = ()) -> Table:
    """Open JSON: one object a line, a list of objects, or one object that holds such a list, whatever the file's name.

    Args:
        found: the file.
        known: names of columns; an object that has one is a row and no table.

    Raises:
        InputError: the file as a whole cannot be read.
    """
    whole = _whole(found, known)
    records = _json_lines(found) if whole is None else _numbered(whole, found.path.name)
    return Table(found.path.name, records, None, (str(found.path),), digest_files([found.path]))


def _numbered(values: Iterable[Any], name: str) -> Records:
    for number, value in enumerate(values, 1):
        yield _object(value, f"{name} item {number}")


def _whole(found: Found, known: Collection[str]) -> list[Any] | None:
    """Return the rows of a file that is one JSON value; None for a file of lines.

    Raises:
        InputError: a list that cannot be read, or an object with several lists.
    """
    first = _first_line(found)
    if first is None:
        return None
    if first.startswith(b"["):
        return _json_list(found)
    try:
        value, one_line_each = stored.parse(first), True
    except ValueError:
        one_line_each = False
        try:
            value = stored.parse(whole_file(found).removeprefix(BOM))
        except (ValueError, InputError):
            return None  # read as lines, the first bad one is named
    if not isinstance(value, dict) or (one_line_each and _is_more_than_a_line(found)):
        return None
    lists = [name for name, held in value.items() if isinstance(held, list) and held and isinstance(held[0], dict)]
    if not lists or not value.keys().isdisjoint(known):
        return None if one_line_each else [value]
    if len(lists) > 1:
        names = " and ".join(f'"{one_line(name, 40)}"' for name in lists[:3])
        what = f"the object holds lists under {names}"
        raise InputError("DATA-04", what, where=found.path.name, fix="give one file each, with the rows of one list")
    return value[lists[0]]


def _first_line(found: Found) -> bytes | None:
    """Return the first line that is not blank; None where there is none, or it is too long to be one."""
    with closing(raw_lines(found)) as lines:
        for item in lines:
            if isinstance(item, InputError):
                return b"[" if found.kind == "json" else None
            if text := item[1].strip():
                return text
    return None


def _is_more_than_a_line(found: Found) -> bool:
    with closing(raw_lines(found)) as lines:
        filled = (item for item in lines if isinstance(item, InputError) or item[1].strip())
        return len(list(itertools.islice(filled, 2))) > 1


def _json_lines(found: Found) -> Records:
    for item in raw_lines(found):
        if isinstance(item, InputError):
            yield item
            continue
        number, line = item
        if not line.strip():
            continue
        where = f"{found.path.name} line {number}"
        text = decode_text(line, where)
        yield text if isinstance(text, InputError) else _json_row(text, where)


def _json_row(text: str, where: str) -> Record | InputError:
    try:
        value = stored.parse(text)
    except stored.NestedError:
        return InputError("DATA-04", "nested too deeply", where=where, fix="one flat object a line")
    except ValueError as error:
        reason = f"{getattr(error, 'msg', error)} at character {getattr(error, 'pos', 0) + 1}"
        if not text.endswith("\n"):
            return InputError(
                "DATA-03", f"the last line is cut off ({reason})", where=where, fix="write the file again, or delete it"
            )
        return InputError("DATA-04", f"not JSON: {reason}", where=where, fix="one JSON object a line")
    return _object(value, where)


def _object(value: Any, where: str) -> Record | InputError:
    if isinstance(value, dict):
        return Record(where, value)
    return InputError(
        "DATA-04",
        f"an object is needed, got {kind_of(value)}",
        where=where,
        fix='write rows as {"prompt": ..., "completion": ...}',
    )


def kind_of(value: object) -> str:
    """Name a JSON value's kind.

    >>> kind_of(None), kind_of(1.5), kind_of([])
    ('null', 'a number', 'a list')
    """
    if value is None:
        return "null"
    kinds = ((bool, "true or false"), ((int, float), "a number"), (str, "text"), ((list, tuple), "a list"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "an object")


def _json_list(found: Found) -> list[Any]:
    path = found.path
    text = decode_text(whole_file(found).removeprefix(BOM), path.name)
    if isinstance(text, InputError):
        raise text
    try:
        values = stored.parse(text)
    except stored.NestedError:
        raise InputError("DATA-04", "nested too deeply", where=path.name, fix="a list of flat objects") from None
    except ValueError as error:
        line, position = getattr(error, "lineno", 1), getattr(error, "pos", 0)
        if position >= len(text.rstrip()):
            raise InputError(
                "DATA-03", "the file is cut off", where=f"{path.name} line {line}", fix="write it again"
            ) from None
        reason = getattr(error, "msg", error)
        raise InputError("DATA-04", f"not JSON: {reason}", where=f"{path.name} line {line}", fix="repair it") from None
    return values
