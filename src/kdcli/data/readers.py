"""Reads JSONL, JSON and CSV, with file and line of each bad row."""

import csv
import gzip
import itertools
import zlib
from collections.abc import Collection, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from io import BufferedReader
from typing import Any, TypeAlias

from kdcli.data.files import DataPath, digest_files, system_error
from kdcli.errors import InputError
from kdcli.storage import stored
from kdcli.text import one_line

# What every reader of rows hands over, whatever the file format.


MAX_LINE_BYTES = 16 * 2**20
MAX_TOTAL_BYTES = 2**30


class Place(str):
    """A row's place as one text, such as ``a.csv line 4``.

    Args:
        file: short name of the file.
        inside: line, item or row number; kept apart, for lists of places in one file.

    >>> Place("a.csv", "line 4"), Place("a.csv", "line 4").inside
    ('a.csv line 4', 'line 4')
    """

    inside: str

    def __new__(cls, file: str, inside: str = "") -> "Place":  # noqa: D102
        place = super().__new__(cls, f"{file} {inside}".rstrip())
        place.inside = inside
        return place


def short_place(where: str) -> str:
    """Return the place of a row without its file; that of a whole file as it is."""
    return getattr(where, "inside", "") or where


@dataclass(frozen=True)
class Record:
    """One raw row.

    Args:
        where: file and line, item or row number, for messages.
        fields: column name to value, unchecked.
    """

    where: str
    fields: dict[str, Any]


Records: TypeAlias = Iterator[Record | InputError]
"""Rows in file order; a row that cannot be read comes as the error that says why."""


@dataclass(frozen=True)
class Table:
    """A source of rows, opened.

    Args:
        name: short name for messages.
        records: the rows, read lazily.
        columns: column names where a header or schema states them, else None.
        files: the files behind it.
        digest: sha256 over the bytes of the files.
        notes: what was chosen on the way, such as a split.
    """

    name: str
    records: Records
    columns: tuple[str, ...] | None
    files: tuple[str, ...]
    digest: str
    notes: tuple[str, ...] = ()


def counted(count: int, noun: str) -> str:
    """Return a count with its noun.

    >>> counted(1, "row"), counted(12000, "row")
    ('1 row', '12,000 rows')
    """
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def size_text(count: int) -> str:
    """Return a byte count in words.

    >>> size_text(16 * 2**20)
    '16 MiB'
    """
    size, units = float(count), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1000 and len(units) > 1:
        size /= 1024
        units.pop(0)
    return f"{size:.3g} {units[0]}"


# Reads a text file line by line, gzipped or not, within limits and with line numbers.


BOM = b"\xef\xbb\xbf"


def raw_lines(found: DataPath) -> Generator[tuple[int, bytes] | InputError, None, None]:
    """Yield numbered lines with their line ends; an over-long one comes as an error.

    Raises:
        InputError: the compressed stream is damaged or expands beyond the limit.
        MachineError: the file cannot be read.
    """
    name, number, total = found.path.name, 0, 0
    try:
        with _open(found) as file:
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                size = len(line)
                while size > MAX_LINE_BYTES and not line.endswith(b"\n") and line:
                    line = file.readline(MAX_LINE_BYTES)
                    _check_total(found, total + size)
                    size += len(line)
                total += size
                _check_total(found, total)
                if size > MAX_LINE_BYTES + 1:
                    yield InputError(
                        "DATA-10",
                        f"the line is {size_text(size)} long, the limit is {size_text(MAX_LINE_BYTES)}",
                        where=Place(name, f"line {number}"),
                        fix="one row a line, each ended by a line break",
                    )
                else:
                    yield number, line.removeprefix(BOM) if number == 1 else line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        what = "cut off" if isinstance(error, EOFError) else "damaged"
        raise InputError(
            "DATA-03", f"the compressed file is {what}", where=f"{name} after line {number}", fix="fetch it again"
        ) from error
    except OSError as error:
        raise system_error(str(found.path), error) from error


def _open(found: DataPath) -> gzip.GzipFile | BufferedReader:
    return gzip.open(found.path, "rb") if found.compressed else found.path.open("rb")


def _check_total(found: DataPath, total: int) -> None:
    if found.compressed and total > MAX_TOTAL_BYTES:
        raise InputError(
            "DATA-11",
            f"expands to more than {size_text(MAX_TOTAL_BYTES)}",
            where=str(found.path),
            fix="unpack it, or split it into smaller files",
        )


def decode_text(line: bytes, where: str) -> str | InputError:
    """Return the UTF-8 text, or the error that says at which character it is invalid."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        position = len(line[: error.start].decode("utf-8", "replace")) + 1
        return InputError(
            "DATA-08", f"invalid UTF-8 at character {position}", where=where, fix="save the file as UTF-8"
        )


def whole_file(found: DataPath) -> bytes:
    """Return all bytes of a file.

    Raises:
        InputError: damaged, or larger than the limit.
        MachineError: the file cannot be read.
    """
    path = found.path
    try:
        with _open(found) as file:
            content = file.read(MAX_TOTAL_BYTES + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError("DATA-03", "the compressed file is damaged", where=path.name, fix="fetch it again") from error
    except OSError as error:
        raise system_error(str(path), error) from error
    if len(content) > MAX_TOTAL_BYTES:
        raise InputError(
            "DATA-10", f"larger than {size_text(MAX_TOTAL_BYTES)}", where=str(path), fix="give JSONL, one row a line"
        )
    return content


def open_json(found: DataPath, known: Collection[str] = ()) -> Table:
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
        yield _object(value, Place(name, f"item {number}"))


def _whole(found: DataPath, known: Collection[str]) -> list[Any] | None:
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


def _first_line(found: DataPath) -> bytes | None:
    """Return the first line that is not blank; None where there is none, or it is too long to be one."""
    with closing(raw_lines(found)) as lines:
        for item in lines:
            if isinstance(item, InputError):
                return b"[" if found.kind == "json" else None
            if text := item[1].strip():
                return text
    return None


def _is_more_than_a_line(found: DataPath) -> bool:
    with closing(raw_lines(found)) as lines:
        filled = (item for item in lines if isinstance(item, InputError) or item[1].strip())
        return len(list(itertools.islice(filled, 2))) > 1


def _json_lines(found: DataPath) -> Records:
    for item in raw_lines(found):
        if isinstance(item, InputError):
            yield item
            continue
        number, line = item
        if not line.strip():
            continue
        where = Place(found.path.name, f"line {number}")
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


def _json_list(found: DataPath) -> list[Any]:
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


# Reads CSV and TSV, strictly: every row has the header's columns.


def open_csv(found: DataPath) -> Table:
    """Open a CSV or TSV file and read its header.

    Raises:
        InputError: the header cannot be read or used.
    """
    columns, records = _csv(found, "\t" if found.kind == "tsv" else ",")
    return Table(found.path.name, records, columns, (str(found.path),), digest_files([found.path]))


class _Lines:
    """Feeds decoded lines to the CSV reader and remembers the line it is at."""

    def __init__(self, found: DataPath) -> None:
        self.found = found
        self.lines = raw_lines(found)

    def __iter__(self) -> Iterator[str]:
        for item in self.lines:
            if isinstance(item, InputError):
                raise item
            text = decode_text(item[1], Place(self.found.path.name, f"line {item[0]}"))
            if isinstance(text, InputError):
                raise text
            yield text


def _csv(found: DataPath, delimiter: str) -> tuple[tuple[str, ...], Records]:
    csv.field_size_limit(MAX_LINE_BYTES)
    name = found.path.name
    reader = csv.reader(iter(_Lines(found)), delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise _csv_error(error, f"{name} line 1") from error
    other = next((mark for mark in ";\t|" if len(header) == 1 and mark in header[0]), None)
    if other:
        raise InputError(
            "DATA-15",
            f'one column "{one_line(header[0], 60)}": the delimiter seems to be {other!r}',
            where=f"{name} line 1",
            fix="save it with commas, or with tabs as .tsv",
        )
    twice = [column for column in header if header.count(column) > 1]
    if twice:
        raise InputError("DATA-15", f'column "{twice[0]}" comes twice', where=f"{name} line 1", fix="rename one")
    return tuple(header), _csv_records(reader, header, name)


def _csv_records(reader: Any, header: list[str], name: str) -> Records:
    while True:
        where = Place(name, f"line {reader.line_num + 1}")
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise _csv_error(error, where) from error
        if row is None:
            return
        if not row:
            continue
        if len(row) == len(header):
            yield Record(where, dict(zip(header, row, strict=True)))
        else:
            yield InputError(
                "DATA-15",
                f"the row has {len(row)} columns, the header has {len(header)}",
                where=where,
                fix="quote cells that hold commas or line breaks",
            )


def _csv_error(error: csv.Error, where: str) -> InputError:
    return InputError(
        "DATA-15", f"not CSV: {error}", where=where, fix='quote cells with ", and double the quotes in them'
    )
