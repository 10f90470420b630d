"""Reads CSV and TSV, strictly: every row has the header's columns."""

import csv
from collections.abc import Iterator
from typing import Any

from kdcli.data.files import Found, digest_files
from kdcli.data.lines import decode_text, raw_lines
from kdcli.data.tables import MAX_LINE_BYTES, Record, Records, Table
from kdcli.errors import InputError
from kdcli.text import one_line


def open_csv(found: Found) -> Table:
    """Open a CSV or TSV file and read its header.

    Raises:
        InputError: the header cannot be read or used.
    """
    columns, records = _csv(found, "\t" if found.kind == "tsv" else ",")
    return Table(found.path.name, records, columns, (str(found.path),), digest_files([found.path]))


class _Lines:
    """Feeds decoded lines to the CSV reader and remembers the line it is at."""

    def __init__(self, found: Found) -> None:
        self.found = found
        self.lines = raw_lines(found)

    def __iter__(self) -> Iterator[str]:
        for item in self.lines:
            if isinstance(item, InputError):
                raise item
            text = decode_text(item[1], f"{self.found.path.name} line {item[0]}")
            if isinstance(text, InputError):
                raise text
            yield text


def _csv(found: Found, delimiter: str) -> tuple[tuple[str, ...], Records]:
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
        where = f"{name} line {reader.line_num + 1}"
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
