"""Reads JSONL and JSON, telling for each bad row where it is and why."""

from contextlib import closing
from typing import Any

from kdcli import stored
from kdcli.data.files import Found, digest_files
from kdcli.data.lines import BOM, decode_text, raw_lines, whole_file
from kdcli.data.tables import Record, Records, Table
from kdcli.errors import InputError


def open_json(found: Found) -> Table:
    """Open a JSONL file, or a JSON file holding a list of objects or one object a line.

    Raises:
        InputError: the file as a whole cannot be read.
    """
    as_list = found.kind == "json" and _starts_with_list(found)
    records = _json_list(found) if as_list else _json_lines(found)
    return Table(found.path.name, records, None, (str(found.path),), digest_files([found.path]))


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


def _starts_with_list(found: Found) -> bool:
    with closing(raw_lines(found)) as lines:
        for item in lines:
            if isinstance(item, InputError):
                return True
            if text := item[1].strip():
                return text.startswith(b"[")
    return False


def _json_list(found: Found) -> Records:
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
    for number, value in enumerate(values, 1):
        yield _object(value, f"{path.name} item {number}")
