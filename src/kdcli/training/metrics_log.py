"""``metrics.jsonl`` (comparable by hash) and ``timing.jsonl``, append-only."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from kdcli.errors import IntegrityError, KDError
from kdcli.storage import atomic, stored

METRICS = "metrics.jsonl"
TIMING = "timing.jsonl"


@dataclass(frozen=True)
class Mark:
    """How much of a log counts.

    Args:
        size: bytes.
        sha256: their digest; empty where it was not recorded.
    """

    size: int = 0
    sha256: str = ""


_NOTHING = Mark()


class MetricsLog:
    """One run's two logs.

    Args:
        folder: the run folder.
        metrics: what counts of ``metrics.jsonl``; the rest, written after the last checkpoint, is cut off.
        timing: the same of ``timing.jsonl``; of one that was not recorded nothing is cut.

    Raises:
        IntegrityError: a file is shorter than it must be, or what counts of it is not what was written.
    """

    def __init__(self, folder: Path, metrics: Mark = _NOTHING, timing: Mark = _NOTHING) -> None:
        self._path = folder / METRICS
        self._metrics = _Log(self._path, metrics)
        try:
            self._timing = _Log(folder / TIMING, timing if timing.sha256 or not metrics.size else None)
        except KDError:
            self._metrics.close()
            raise

    def write(self, record: dict[str, Any], timing: dict[str, Any]) -> None:
        """Append one line to each log."""
        self._metrics.write(_line(record))
        self._timing.write(_line(timing))

    def read(self) -> list[dict[str, Any]]:
        """Return the lines of ``metrics.jsonl`` that count."""
        return read_metrics(self._path.parent)

    def settle(self) -> tuple[Mark, Mark]:
        """Flush metrics and timing to disk and return what there is of both."""
        return self._metrics.settle(), self._timing.settle()

    def digests(self) -> dict[str, str]:
        """Return each file's digest, as it was written by this process and checked when it was opened."""
        return {METRICS: self._metrics.mark.sha256, TIMING: self._timing.mark.sha256}

    def close(self) -> None:
        """Close both files."""
        try:
            self._metrics.close()
        finally:
            self._timing.close()


class _Log:
    """One append-only file, whose digest is kept as it grows."""

    def __init__(self, path: Path, mark: Mark | None) -> None:
        self._lines = atomic.AppendOnlyFile(path, None if mark is None else mark.size)
        try:
            whole = stored.read_bytes(path)
            self._hash = hashlib.sha256(whole)
            if mark is not None:
                _check(path, Mark(len(whole), self._hash.hexdigest()), mark)
        except KDError:
            self._lines.close()
            raise

    @property
    def mark(self) -> Mark:
        return Mark(self._lines.size, self._hash.hexdigest())

    def write(self, line: bytes) -> None:
        self._lines.add(line)
        self._hash.update(line)

    def settle(self) -> Mark:
        self._lines.settle()
        return self.mark

    def close(self) -> None:
        self._lines.close()


def _check(path: Path, found: Mark, wanted: Mark) -> None:
    fix = "restore the file, or start in a new folder"
    if found.size < wanted.size:
        raise IntegrityError("RUN-07", f"{found.size} of {wanted.size} bytes", where=str(path), fix=fix)
    if wanted.sha256 not in ("", found.sha256):
        what = "digest differs from the newest checkpoint's"
        raise IntegrityError("RUN-01", what, where=str(path), fix=fix)


class NullMetricsLog(MetricsLog):
    """The log of every rank but the first: it writes nothing."""

    def __init__(self) -> None:
        """Open nothing."""

    def settle(self) -> tuple[Mark, Mark]:
        """Return marks of nothing."""
        return _NOTHING, _NOTHING

    def digests(self) -> dict[str, str]:
        """Return nothing."""
        return {}

    def close(self) -> None:
        """Close nothing."""


class _Seen(BaseModel):
    """What was measured while training: ``of`` says by which settings."""

    of: str
    scores: dict[str, float | None]


class _Step(BaseModel, extra="allow"):
    """A line of ``metrics.jsonl``; what else is logged differs between objectives."""

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
