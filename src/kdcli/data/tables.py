"""What every reader of rows hands over, whatever the file format."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from kdcli.errors import InputError

MAX_LINE_BYTES = 16 * 2**20
MAX_TOTAL_BYTES = 2**30


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
