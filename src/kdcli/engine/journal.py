"""Append-only ``metrics.jsonl`` (what happened, comparable by hash) and ``timing.jsonl`` (how fast)."""

import json
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
        self._metrics = durable.Lines(self._path, size)
        if self._metrics.found < size:
            raise IntegrityError(
                "RUN-07",
                f"{self._metrics.found} of {size} bytes",
                where=str(self._path),
                fix="restore the file, or start in a new folder",
            )
        self._timing = durable.Lines(folder / TIMING)

    def write(self, record: dict[str, Any], timing: dict[str, Any]) -> None:
        """Append one line to each log."""
        self._metrics.add(_line(record))
        self._timing.add(_line(timing))

    def read(self) -> list[dict[str, Any]]:
        """Return the lines of ``metrics.jsonl`` that count."""
        return read_metrics(self._path.parent)

    def settle(self) -> int:
        """Flush both logs to disk and return the length of the metrics in bytes."""
        self._timing.settle()
        return self._metrics.settle()

    def close(self) -> None:
        """Close both files."""
        try:
            self._metrics.close()
        finally:
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
