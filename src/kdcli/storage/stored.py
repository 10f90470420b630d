"""Reads JSON records that this package wrote, checked against their types."""

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from types import GenericAlias
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from kdcli.errors import IntegrityError, MachineError
from kdcli.text import one_line

T = TypeVar("T")

AGAIN = "restore the file, or make it again with the command that wrote it"
DEEPEST = 100
"""Levels of brackets; no record and no file of a model has more than a tenth of them."""


class NestedError(ValueError):
    """A JSON text of too many levels."""


def read_record(path: Path, schema: type[T] | GenericAlias, *, fix: str = AGAIN, code: str = "RUN-01") -> T:
    """Return what a JSON file holds.

    Args:
        path: the file.
        schema: a dataclass, a pydantic model, or a type such as ``dict[str, int]``; fields beyond it are kept by a
            dictionary and dropped by a dataclass.
        fix: what to do about a file that is damaged.
        code: identifier of the error.

    Raises:
        IntegrityError: the file is missing, not JSON, or of another shape; says which field.
        MachineError: it may not be read.
    """
    return fit(_parse(read_bytes(path, fix=fix, code=code), path, fix, code), schema, path, fix=fix, code=code)


def read_records(path: Path, schema: type[T] | GenericAlias, *, fix: str = AGAIN) -> list[T]:
    """Return the lines of a JSONL file, each of one shape.

    Raises:
        IntegrityError: a line is damaged; says which.
        MachineError: the file may not be read.
    """
    found = []
    for number, line in enumerate(read_bytes(path, fix=fix).splitlines(), 1):
        try:
            found.append(_adapter(schema).validate_python(parse(line)))
        except ValueError as error:
            raise _damaged(path, f"line {number} {_reason(error)}", fix, "RUN-01") from error
    return found


def read_bytes(path: Path, *, fix: str = AGAIN, code: str = "RUN-01") -> bytes:
    """Return a file's bytes.

    Raises:
        IntegrityError: it is missing.
        MachineError: it may not be read.
    """
    try:
        return path.read_bytes()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise _damaged(path, "is missing", fix, code) from error
    except OSError as error:
        what = f"cannot be read: {error.strerror or error}"
        raise MachineError("ENV-01", what, where=str(path), fix="check owner, mode and mount of the path") from error


def fit(found: Any, schema: type[T] | GenericAlias, path: Path, *, fix: str = AGAIN, code: str = "RUN-01") -> T:
    """Return a value that was read from a file in the shape that a part of it must have.

    Raises:
        IntegrityError: it has another; names file and field.
    """
    try:
        return _adapter(schema).validate_python(found)
    except ValidationError as error:
        raise _damaged(path, _reason(error), fix, code) from error


def parse(raw: bytes | str) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: it is not JSON, or has more than 100 levels: a NestedError.

    >>> parse('{"a": [1]}')
    {'a': [1]}
    >>> parse("[" * 101 + "]" * 101)
    Traceback (most recent call last):
    kdcli.storage.stored.NestedError: nested too deeply
    """
    try:
        value = json.loads(raw)
    except RecursionError as error:
        raise NestedError("nested too deeply") from error
    level = _containers([value])
    for _ in range(DEEPEST):
        if not level:
            return value
        level = [inner for one in level for inner in _containers(one.values() if isinstance(one, dict) else one)]
    if level:
        raise NestedError("nested too deeply")
    return value


def _containers(values: Iterable[Any]) -> list[Any]:
    return [value for value in values if isinstance(value, dict | list)]


@cache
def _adapter(schema: Any) -> Any:
    return TypeAdapter(schema)


def _parse(raw: bytes, path: Path, fix: str, code: str) -> Any:
    try:
        return parse(raw)
    except ValueError as error:
        raise _damaged(path, "is not JSON", fix, code) from error


def _reason(error: ValueError) -> str:
    """Say what is wrong with a record: its first field that does not fit."""
    if not isinstance(error, ValidationError):
        return "is not JSON"
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = one_line(".".join(map(str, first["loc"])), 80)
    what = one_line(first["msg"], 120)
    return f"does not fit: {place}: {what}" if place else f"does not fit: {what}"


def _damaged(path: Path, what: str, fix: str, code: str) -> IntegrityError:
    return IntegrityError(code, what, where=str(path), fix=fix)
