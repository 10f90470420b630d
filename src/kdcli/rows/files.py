"""What every command that writes rows has in common: raw columns, JSON lines, the record of how they came about."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdcli.config.sections import DataConfig
from kdcli.data.readers import Record
from kdcli.data.rows import raw_records
from kdcli.errors import ExperimentChangedError, InterruptedRunError
from kdcli.events import Event, Report
from kdcli.signals import StopRequest
from kdcli.storage import atomic, digests, stored

ROWS = "rows.jsonl"
ABOUT = "about.json"
KIND = "rows"


def columns_of(path: str, config: DataConfig) -> dict[str, dict[str, Any]]:
    """Return where a row stands -> all its columns as the file has them; rows that cannot be read are left out.

    Args:
        path: file, saved ``datasets`` folder or hub id.
        config: column map.
    """
    return {one.where: one.fields for one in raw_records(path, config).records if isinstance(one, Record)}


def json_line(row: Mapping[str, Any]) -> str:
    """Return a row as a line of JSON; a value that JSON has no form for, such as a date, becomes text."""
    return json.dumps(row, ensure_ascii=False, default=str) + "\n"


@dataclass(frozen=True)
class _About:
    """What is read of ``about.json``."""

    made_of: dict[str, Any]


def check_same(folder: Path, made_of: Mapping[str, Any], what: str) -> None:
    """Refuse a folder whose rows were made of something else.

    Args:
        folder: where rows are to be written.
        made_of: what they follow from.
        what: says so, in the message.

    Raises:
        ExperimentChangedError: ROWS-03.
        IntegrityError: its note cannot be read.
    """
    path = folder / ABOUT
    if path.is_file() and stored.read_record(path, _About, fix="choose another -o").made_of != made_of:
        raise ExperimentChangedError("ROWS-03", what, where=str(folder), fix="choose another -o")


def write_rows(folder: Path, files: Mapping[str, Iterable[Mapping[str, Any]]], about: Mapping[str, Any]) -> None:
    """Write files of rows, how they came about, and the digests of all.

    Args:
        folder: where; its lock is held.
        files: name -> rows.
        about: goes to ``about.json``; has ``made_of``.

    Raises:
        MachineError: the disk is full or may not be written.
    """
    atomic.remove_file(folder / digests.NAME)
    for name, rows in files.items():
        atomic.write_file(folder / name, "".join(map(json_line, rows)))
    atomic.write_file(folder / ABOUT, json.dumps(about, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    digests.write_digests(folder, (*files, ABOUT), KIND)


@dataclass
class Working:
    """Watches work on rows: reports it, and ends it where a signal asks for it.

    Args:
        report: called with progress events.
        stop: the request to stop.
        command: what to type to go on.
        total: rows of the work in hand.
        done: those that are done.
    """

    report: Report
    stop: StopRequest
    command: str
    total: int = 0
    done: int = 0
    values: dict[str, float] = field(default_factory=dict)

    def begin(self, what: str, done: int, total: int) -> None:
        """Begin a stretch of work, of which some may be done already."""
        self.done, self.total = done, total
        self.report(Event("stage", what, total=total))
        if done:
            self.report(Event("note", f"{done:,} of {total:,} rows are there already"))

    def step(self, what: str) -> None:
        """Count a row that is done and on its way to disk.

        Raises:
            InterruptedRunError: a signal asked for it.
        """
        self.done += 1
        self.report(Event("progress", what, done=self.done, total=self.total))
        if self.stop.signal_number:
            said = f"stopped after {self.done:,} of {self.total:,} rows, saved"
            raise InterruptedRunError(
                self.stop.signal_number, said, fix=f"go on with: {self.command or 'the same line'}"
            )
