"""How far the cells of a study are, from its folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group
from rich.text import Text

from kdcli.cli.grid import CellStatus, counts, grid, summary
from kdcli.runs import lock, watch
from kdcli.runs.study import Entry, ReferenceEntry, read_study
from kdcli.runs.watch import Seen


@dataclass(frozen=True)
class Status:
    """How far a study is.

    Args:
        study: its folder.
        counts: state -> cells.
        seconds_left: training time to go, cells one after another; None if unknown.
        cells: every cell.
        references: the evaluations of models that the study does not train, done or waiting.
    """

    study: Path
    counts: dict[str, int]
    seconds_left: float | None
    cells: tuple[CellStatus, ...]
    references: tuple[CellStatus, ...] = ()


def read(study: Path) -> Status:
    """Look at a study's folder; no model is loaded and nothing is locked.

    Raises:
        KDError: the folder holds no study, or a damaged one.
    """
    found = read_study(study)
    entries = found.cells
    seen = [_look(study, entry) for entry in entries]
    cells = tuple(_status(study, entry, one) for entry, one in zip(entries, seen, strict=True))
    lines = tuple(_line(study, entry) for entry in found.references)
    return Status(study, counts(cells), seconds_left(entries, seen), cells, lines)


def seconds_left(entries: Sequence[Entry], seen: Sequence[Seen]) -> float | None:
    """Return the training time to go, at the pace of the cells that have begun."""
    paces = [one.seconds_per_step for one in seen if one.seconds_per_step is not None]
    if not paces:
        return None
    usual = sum(paces) / len(paces)
    rest = [(entry.steps - one.step, one.seconds_per_step) for entry, one in zip(entries, seen, strict=True)]
    return sum(max(steps, 0) * (pace if pace is not None else usual) for steps, pace in rest)


def draw(found: Status) -> Group:
    """Return the grid of a study."""
    return Group(grid((*found.cells, *found.references)), Text(summary(found.counts, found.seconds_left)))


def _look(study: Path, entry: Entry) -> Seen:
    folder = study / entry.folder
    return watch.look(folder, entry.evaluation, held=lock.is_held(folder))


def _line(study: Path, entry: ReferenceEntry) -> CellStatus:
    name = entry.label if entry.seed is None else f"{entry.label} · seed {entry.seed}"
    state = "done" if (study / entry.folder / "results.json").is_file() else "waiting"
    return CellStatus(name, state, 0, 0, None)


def _status(study: Path, entry: Entry, seen: Seen) -> CellStatus:
    log = str(study / entry.folder / "error.log") if seen.state == "failed" else ""
    step = entry.steps if seen.state == "done" else seen.step
    return CellStatus(entry.name, seen.state, step, entry.steps, seen.seconds_left, log)
