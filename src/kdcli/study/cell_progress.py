"""Progress of a cell, read from the small files of its folder; loads neither models nor torch."""

import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from kdcli.storage import stored

State = Literal["waiting", "running", "stopped", "failed", "done"]
_TAIL = 4096
_RECENT = 20


@dataclass(frozen=True)
class CellProgress:
    """How far a cell is.

    Args:
        state: waiting has not begun; stopped can be resumed; done has been evaluated.
        step: optimizer steps done.
        total: of so many; 0 before it is known.
        seconds_per_step: median over the last steps, None before the first.
        seconds: time in steps of a finished training.
    """

    state: State
    step: int = 0
    total: int = 0
    seconds_per_step: float | None = None
    seconds: float | None = None

    @property
    def seconds_left(self) -> float | None:
        """Training time to go at the pace of the last steps, None if unknown."""
        if self.state == "done" or self.seconds_per_step is None:
            return 0.0 if self.state == "done" else None
        return self.seconds_per_step * max(self.total - self.step, 0)


def read_progress(folder: Path, evaluation: str, *, held: bool) -> CellProgress:
    """Look at a cell.

    Args:
        folder: its run folder; it need not exist.
        evaluation: folder of its evaluation, inside.
        held: whether some process works in it.
    """
    status = _json(folder / "status.json")
    trained = status.get("state") == "done" and (folder / "model").is_dir()
    measured = (folder / evaluation / "results.json").is_file()
    paces = [line["seconds"] for line in _last_lines(folder / "timing.jsonl") if "seconds" in line]
    lines = _last_lines(folder / "metrics.jsonl")
    seen = CellProgress(
        "waiting",
        step=status.get("steps", 0) if trained or not lines else lines[-1].get("step", 0),
        total=status.get("total", status.get("steps", 0) if trained else 0),
        seconds_per_step=statistics.median(paces[-_RECENT:]) if paces else None,
        seconds=status.get("seconds") if trained else None,
    )
    if trained and measured and not held:
        return replace(seen, state="done")
    if held:
        return replace(seen, state="running")
    if (folder / "error.log").is_file() and status.get("state") in (None, "failed", "done"):
        return replace(seen, state="failed")
    return replace(seen, state="stopped" if status or lines else "waiting")


def _last_lines(path: Path) -> list[dict[str, Any]]:
    """Return the last whole records of a log that another process may be writing."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL))
            raw = file.read()
    except OSError:
        return []
    pieces = raw.split(b"\n")
    whole = pieces[1:-1] if size > _TAIL else pieces[:-1]
    return [record for record in map(_record, whole) if record]


def _json(path: Path) -> dict[str, Any]:
    try:
        return _record(path.read_bytes())
    except OSError:
        return {}


def _record(raw: bytes) -> dict[str, Any]:
    try:
        found = stored.parse(raw)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
