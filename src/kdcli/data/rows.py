"""Reads rows of text from files, saved folders and the hub, and checks every one."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from kdcli.config import DataConfig
from kdcli.data.check import Row, check_record
from kdcli.data.columnar import open_hub, open_parquet, open_saved
from kdcli.data.csv_rows import open_csv
from kdcli.data.detect import KNOWN, Layout, detect
from kdcli.data.files import find
from kdcli.data.json_rows import open_json
from kdcli.data.tables import Record, Records, Table, counted
from kdcli.errors import InputError

__all__ = ["Row", "RowReport", "read_rows"]

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
    """

    rows: tuple[Row, ...]
    bad: tuple[str, ...]
    format: str
    files: tuple[str, ...]
    digest: str
    notes: tuple[str, ...] = ()


def read_rows(
    path: str,
    config: DataConfig,
    *,
    limit: int | None = None,
    splits: Sequence[str] = ("train",),
    answered: bool = True,
) -> RowReport:
    """Read and check rows.

    Args:
        path: .jsonl(.gz), .json, .csv, .tsv or .parquet file, a folder saved by ``datasets``, or a hub id.
        config: column map and whether bad rows are left out.
        limit: read no further than this many good rows.
        splits: split to take where there are several, in order of preference.
        answered: whether rows need answers; where they need none, those they have are not read.

    Raises:
        InputError: the file, or with ``skip_bad`` off any row, cannot be used.
        MachineError: not permitted.
    """
    table = _open(path, config, splits)
    layout, records = _recognise(table, config, answered)
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
        (*table.notes, *_notes(table.name, layout, gathered)),
    )


def _open(path: str, config: DataConfig, splits: Sequence[str]) -> Table:
    found = find(path)
    if found.kind == "parquet":
        return open_parquet(found.path, {*KNOWN, *config.columns.values(), "id"})
    if found.kind == "saved":
        return open_saved(found.path, splits)
    if found.kind == "hub":
        return open_hub(path, splits)
    return open_csv(found) if found.kind in ("csv", "tsv") else open_json(found, {*KNOWN, *config.columns.values()})


def _recognise(table: Table, config: DataConfig, answered: bool) -> tuple[Layout, Records]:
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
    return detect(columns, config.columns, table.name, answered=answered), records


def _no_rows(table: Table) -> InputError:
    return InputError("DATA-02", "the file holds no rows", where=table.name, fix="give a file with at least one row")


@dataclass
class _Gathered:
    rows: list[Row] = field(default_factory=list)
    bad: list[InputError] = field(default_factory=list)


def _gather(records: Records, layout: Layout, limit: int | None, skip_bad: bool) -> _Gathered:
    gathered = _Gathered()
    for item in _checked(records, layout):
        if isinstance(item, InputError):
            gathered.bad.append(item)
            continue
        gathered.rows.append(item)
        if limit is not None and len(gathered.rows) + (0 if skip_bad else len(gathered.bad)) >= limit:
            break
    return gathered


def _checked(records: Records, layout: Layout) -> Iterator[Row | InputError]:
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
    more = "; ".join(f"{_place(error.where)}: {error.what}" for error in others)
    dots = "; …" if len(errors) > _SHOWN else ""
    return InputError(
        first.code, f"{first.what} ({len(errors)} bad rows in all; {more}{dots})", where=first.where, fix=first.fix
    )


def _place(where: str) -> str:
    return " ".join(where.rsplit(" ", 2)[-2:])


def _notes(name: str, layout: Layout, gathered: _Gathered) -> Iterable[str]:
    yield f"{name}: {counted(len(gathered.rows), layout.form.name + ' row')} ({layout.names})"
    if gathered.bad:
        first = "; ".join(f"{_place(error.where)}: {error.what}" for error in gathered.bad[:_SHOWN])
        yield f"{name}: {counted(len(gathered.bad), 'bad row')} left out ({first})"
    odd = [row.where for row in gathered.rows if row.has_control_characters]
    if odd:
        yield f"{name}: {counted(len(odd), 'row')} with control characters, kept as they are (first: {_place(odd[0])})"
