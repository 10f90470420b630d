"""One teacher cache for all cells of a study, where that saves time."""

import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kdcli.data.tokenize import TokenDataset
from kdcli.distill.plan import CellState
from kdcli.events import Event, Report
from kdcli.loading.session import Session
from kdcli.metrics.describe import describe
from kdcli.storage import atomic
from kdcli.study.cells import Cell
from kdcli.teachers.cache_build import build_cache
from kdcli.teachers.cached import cache_key, estimated_bytes

FOLDER = "teacher-cache"
_WORTH = 1.5
"""Passes that the teacher must be spared the cost of one for."""
_SHARE = 0.25
"""Of the free disk, at most."""


def with_cache(output: Path, cells: list[Cell], report: Report, session: Session, command: str) -> list[Cell]:
    """Return the cells, reading from a cache built in the study's folder if it pays.

    The cells stay the same experiments: nothing is lost by the cache, and on a CPU not a bit changes.
    """
    needing = [cell for cell in cells if cell.state().state is not CellState.DONE and cell.prepared.needs_teacher]
    needing = [cell for cell in needing if not cell.prepared.pair.classifies]  # their teacher reads each row once
    open_cells = [cell for cell in needing if _knows(cell)]
    if len(open_cells) < len(needing):
        live = len(needing) - len(open_cells)
        report(Event("note", f"{live} runs learn what no cache knows: they run the teacher themselves"))
    if not open_cells:
        return cells
    datasets = _rows(open_cells)
    first = open_cells[0].prepared
    teacher = first.pair.teacher
    assert teacher is not None, "a cell needs it"
    if teacher.blend is not None:  # several teachers: there is no one head to keep
        return cells
    passes = sum(_tokens_read(cell) for cell in open_cells) / sum(sum(rows.lengths) for rows in datasets)
    key = cache_key(teacher, first.data, first.hardware, first.device)
    size = estimated_bytes(key, teacher.width, teacher.rows, sum(rows.targets for rows in datasets))
    folder = output / FOLDER
    if passes < _WORTH or size > _SHARE * shutil.disk_usage(output).free:
        return cells
    atomic.make_inside(output, FOLDER)
    build_cache(folder, key, datasets, teacher, session, first.device, report, command=command)
    report(Event("note", f"the teacher ran once; {len(open_cells)} runs would have run it {passes:.1f} times"))
    return [_reading(cell, folder) if _knows(cell) else cell for cell in cells]


def _knows(cell: Cell) -> bool:
    """Whether a cache knows what a cell reads: rows of the data set, in tokens that both models share."""
    return cell.prepared.source.needs().offline and cell.prepared.teacher_rows is None


def _reading(cell: Cell, folder: Path) -> Cell:
    found = {"teacher_cache": str(folder)}
    measuring = cell.prepared.measuring.model_copy(update=found)
    prepared = replace(cell.prepared, measuring=measuring, **found)
    return replace(cell, settings=cell.settings.model_copy(update=found), prepared=prepared)


def _rows(cells: Sequence[Cell]) -> list[TokenDataset]:
    """Return every data set that the cells read with the teacher, each once."""
    found = {}
    for cell in cells:
        test = cell.prepared.test if _is_measured_against(cell) else None
        for rows in (cell.prepared.dataset, test):
            if rows is not None:
                found.setdefault(rows.digest, rows)
    return list(found.values())


def _tokens_read(cell: Cell) -> float:
    """Return the tokens that the teacher reads for a cell: in training, and to measure the student against it."""
    run = cell.prepared
    passes = run.steps * run.train.batch_size / len(run.dataset)
    measured = sum(run.test.lengths) if run.test is not None and _is_measured_against(cell) else 0
    return math.fsum((passes * sum(run.dataset.lengths), measured))


def _is_measured_against(cell: Cell) -> bool:
    return any(describe(name).needs_teacher for name in cell.prepared.evaluation.metrics)
