"""Append-only ``metrics.jsonl`` (what happened, comparable by hash) and ``timing.jsonl`` (how fast)."""

import json
import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from kdcli import durable, stored
from kdcli.errors import IntegrityError

METRICS = "metrics.jsonl"
TIMING = "timing.jsonl"


class Journal:
    """One run's two logs.

    Args:
        folder: the run folder.
        size: bytes of ``metrics.jsonl`` that count; the rest, written after the last
            checkpoint, is cut off.

    Raises:
        IntegrityError: the file is shorter than it must be.
    """

    def __init__(self, folder: Path, size: int = 0) -> None:
        self._path = folder / METRICS
        try:
            self._metrics = self._path.open("ab")
            self._timing = (folder / TIMING).open("ab")
        except OSError as error:
            raise durable.refused(error, self._path) from error
        found = self._metrics.seek(0, os.SEEK_END)
        if found < size:
            raise IntegrityError(
                "RUN-07",
                f"{found} of {size} bytes",
                where=str(self._path),
                fix="restore the file, or start in a new folder",
            )
        self._metrics.truncate(size)
        self._metrics.seek(size)

    def write(self, record: dict[str, Any], timing: dict[str, Any]) -> None:
        """Append one line to each log."""
        try:
            self._metrics.write(_line(record))
            self._metrics.flush()
            self._timing.write(_line(timing))
            self._timing.flush()
        except OSError as error:
            raise durable.refused(error, self._path) from error

    def read(self) -> list[dict[str, Any]]:
        """Return the lines of ``metrics.jsonl`` that count."""
        return read_metrics(self._path.parent)

    def settle(self) -> int:
        """Flush the metrics to disk and return their length in bytes."""
        os.fsync(self._metrics.fileno())
        return self._metrics.tell()

    def close(self) -> None:
        """Close both files."""
        self._metrics.close()
        self._timing.close()


class Deaf(Journal):
    """The journal of every process but the first."""

    def __init__(self) -> None:
        """Open nothing."""

    def settle(self) -> int:
        """Return 0: nothing is written."""
        return 0

    def close(self) -> None:
        """Close nothing."""


class _Seen(BaseModel):
    """What was measured while training: ``of`` says by which settings."""

    of: str
    scores: dict[str, float | None]


class _Step(BaseModel, extra="allow"):
    """A line of ``metrics.jsonl``; what else was watched differs between objectives."""

    step: int
    loss: float
    evaluation: _Seen | None = None


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's ``metrics.jsonl``.

    Raises:
        IntegrityError: a line is torn or holds no step.
    """
    lines = stored.read_records(folder / METRICS, _Step, fix="restore the file, or train again in a new folder")
    return [line.model_dump(exclude_unset=True) for line in lines]


def _line(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, allow_nan=False) + "\n").encode()
