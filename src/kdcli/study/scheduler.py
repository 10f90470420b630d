"""Runs the cells of a comparison on any executor: submits, watches folders, collects records."""

import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from kdcli.comparison.records import Failure
from kdcli.config import resolve
from kdcli.distill.records import RunRecord
from kdcli.distill.run import is_complete, read_run
from kdcli.errors import ERROR_LINE, InterruptedRunError, KDError, explained
from kdcli.evaluation.evaluate import find_evaluation
from kdcli.evaluation.records import EvalRecord
from kdcli.events import Event, Report
from kdcli.loading.session import Session
from kdcli.registry import plugins
from kdcli.signals import StopRequest
from kdcli.storage import atomic, lock
from kdcli.study import cell_progress
from kdcli.study.cells import Cell
from kdcli.study.executors.base import Executor, Job, JobResult


def failure_of(ended: JobResult) -> Failure:
    """Return why a cell failed, in one line, and the log that says more."""
    cell, error = ended.job.cell, ended.error
    log = cell.folder.path / "error.log"
    code = ended.exit_code if ended.exit_code >= 0 else 4
    if error is not None:
        known = explained(error) or plugins.blamed(error)
        code = known.exit_code if known is not None else 1
        if cell.folder.path.is_dir() and not log.is_file():
            atomic.write_file(log, "".join(traceback.format_exception(error)))
        message = str(known) if known is not None else f"{type(error).__name__}: {error}"
        return Failure(cell.label, cell.seed, message, log, code)
    if ended.exit_code < 0:
        message = f"the process was ended by signal {-ended.exit_code}; is the machine out of memory?"
    else:
        message = _error_line(ended.job.log) or f"ended with exit code {ended.exit_code}"
    return Failure(cell.label, cell.seed, message, log if log.is_file() else ended.job.log, code)


def _error_line(log: Path) -> str:
    """Return the last error line that ``kd`` wrote into a log, without its beginning; empty if there is none."""
    try:
        lines = log.read_text(encoding="utf-8", errors="backslashreplace").splitlines()
    except OSError:
        return ""
    return next((line.removeprefix(ERROR_LINE) for line in reversed(lines) if line.startswith(ERROR_LINE)), "")


Finished = tuple[RunRecord, EvalRecord]
FoundT = TypeVar("FoundT", bound=tuple[RunRecord, Any])

PLAN, LOGS = "plan", "logs"
BUSY = 5
_STOPPED = {130, 143, -2, -15}
_BETWEEN_POLLS, _BETWEEN_READS = 0.05, 0.5
_STARTS = 4
_PATIENCE = 30.0
"""Seconds to wait for another process in a cell's folder that makes no progress."""


@dataclass
class _ScheduledJob:
    """A job and what was tried with it."""

    job: Job
    starts: int = 0
    not_before: float = 0.0
    seen: tuple[float, cell_progress.CellProgress | None] = (0.0, None)


@dataclass
class Outcome(Generic[FoundT]):
    """What became of cells.

    Args:
        finished: the records of those that are done, by their place in the list that was asked for.
        failed: the others, by place.
    """

    finished: dict[int, FoundT] = field(default_factory=dict)
    failed: dict[int, Failure] = field(default_factory=dict)


class Scheduler(Generic[FoundT]):
    """Cells under way: those of a comparison, or others.

    Args:
        executor: where they run.
        folder: the folder around all cells, for settings and logs of those that run elsewhere.
        report: called with the progress of every cell.
        session: what is loaded already.
        command: what to type to go on after an interruption.
        collect: returns the record of a cell that is done, with what was measured of it; None for one that is not.
    """

    def __init__(
        self, executor: Executor, folder: Path, report: Report, session: Session, command: str,
        collect: Callable[[Cell, Session], FoundT | None],
    ) -> None:  # fmt: skip
        self.executor, self.folder, self.report = executor, folder, report
        self.session, self.command, self.collect = session, command, collect
        self._cells: list[Cell] = []
        self._outcome: Outcome[FoundT] = Outcome()
        self._waiting: list[_ScheduledJob] = []
        self._running: list[_ScheduledJob] = []
        self._last_read = 0.0
        self._stopping = 0

    def run(self, cells: Sequence[Cell]) -> Outcome[FoundT]:
        """Run what is missing of some cells; one that fails does not stop the others.

        Raises:
            InterruptedRunError: stopped by a signal; what ran has saved.
        """
        self._cells, self._outcome = list(cells), Outcome()
        for index, cell in enumerate(cells):
            self._report_state(cell, "waiting", total=cell.prepared.steps)
            found = self.collect(cell, self.session)
            if found is not None and is_complete(cell.folder, cell.prepared):
                self._outcome.finished[index] = found
                self._report_state(cell, "done", cell.prepared.steps, cell.prepared.steps)
        missing = [cell for index, cell in enumerate(cells) if index not in self._outcome.finished]
        self._waiting = [_ScheduledJob(self._job(cell)) for cell in missing]
        with StopRequest() if self.executor.elsewhere else nullcontext() as stop:
            while self._waiting or self._running:
                self._step(stop.signal_number if stop is not None else 0)
        if self._stopping:
            raise self._interrupted()
        return self._outcome

    def _step(self, signal_number: int) -> None:
        """Start what may start, gather what ended, look at what runs."""
        if signal_number and not self._stopping:
            self._stopping = signal_number
            self._waiting.clear()
            self.executor.stop(signal_number)
            self.report(Event("warning", f"stopping: {len(self._running)} runs finish their step and save"))
        now = time.monotonic()
        for scheduled in [scheduled for scheduled in self._waiting if scheduled.not_before <= now]:
            if len(self._running) >= self.executor.capacity:
                break
            self._start(scheduled)
        for ended in self.executor.poll():
            self._finish(ended)
        if self.executor.elsewhere and (self._waiting or self._running):
            self._report_progress(now)
            time.sleep(_BETWEEN_POLLS)

    def _start(self, scheduled: _ScheduledJob) -> None:
        self._waiting.remove(scheduled)
        self._running.append(scheduled)
        scheduled.starts += 1
        cell = scheduled.job.cell
        atomic.make_inside(self.folder, cell.folder.path.parent.name, cell.folder.path.name)
        self._report_state(cell, "running", total=cell.prepared.steps)
        place = self.executor.submit(scheduled.job, self._cell_report(cell))
        if place and scheduled.starts == 1:
            self.report(Event("note", f"{cell.name}: {place}"))

    def _finish(self, ended: JobResult) -> None:
        """Book a job that is over, or put it back in the queue."""
        scheduled = next(scheduled for scheduled in self._running if scheduled.job is ended.job)
        self._running.remove(scheduled)
        cell = ended.job.cell
        index = self._cells.index(cell)
        if self._stopping and ended.exit_code:
            self._report_state(cell, "stopped")
        elif ended.exit_code == 0:
            found = self.collect(cell, self.session)
            if found is None:
                self._fail(index, JobResult(ended.job, 1, RuntimeError("ended without results")))
                return
            self._outcome.finished[index] = found
            self._report_state(cell, "done", found[0].steps, found[0].steps, seconds=found[0].seconds)
        elif self._may_try_again(scheduled, ended):
            self._waiting.append(scheduled)
            self._report_state(cell, "waiting", total=cell.prepared.steps)
        else:
            self._fail(index, ended)

    def _may_try_again(self, scheduled: _ScheduledJob, ended: JobResult) -> bool:
        """Whether a job was stopped from outside, or met another process that still makes progress."""
        if ended.exit_code in _STOPPED and self.executor.elsewhere:
            return scheduled.starts < _STARTS
        if ended.exit_code != BUSY:
            return False
        now = time.monotonic()
        seen = self._read_progress(scheduled.job.cell)
        if scheduled.seen[1] != seen:
            scheduled.seen = (now, seen)
        scheduled.not_before = now + 0.5
        if not self.executor.elsewhere:
            time.sleep(0.5)
        return now - scheduled.seen[0] < _PATIENCE

    def _fail(self, index: int, ended: JobResult) -> None:
        failure = failure_of(ended)
        self._outcome.failed[index] = failure
        self._report_state(ended.job.cell, "failed", log=str(failure.log))
        self.report(Event("warning", f"{ended.job.cell.name} failed: {failure.message}"))

    def _report_progress(self, now: float) -> None:
        if now - self._last_read < _BETWEEN_READS:
            return
        self._last_read = now
        for scheduled in self._running:
            cell = scheduled.job.cell
            seen = self._read_progress(cell)
            if seen.step:
                self._report_state(cell, "running", seen.step, cell.prepared.steps, left=seen.seconds_left)

    def _read_progress(self, cell: Cell) -> cell_progress.CellProgress:
        evaluation = str(cell.evaluation.relative_to(cell.folder.path))
        return cell_progress.read_progress(cell.folder.path, evaluation, held=lock.is_held(cell.folder.path))

    def _cell_report(self, cell: Cell) -> Report:
        """Return the report of a cell that runs in this process: its steps are the grid's progress too."""
        inner = named(self.report, cell.name)

        def forward(event: Event) -> None:
            if event.kind == "progress" and event.message == "training":
                self._report_state(cell, "running", event.done, event.total)
            inner(event)

        return forward

    def _report_state(self, cell: Cell, state: str, step: int = 0, total: int = 0, **values: object) -> None:
        self.report(Event("cell", cell.name, done=step, total=total, values={"state": state, **values}))

    def _job(self, cell: Cell) -> Job:
        name = f"{cell.folder.path.name}-{cell.evaluation.name}"
        config, log = self.folder / PLAN / f"{name}.yaml", self.folder / LOGS / f"{name}.log"
        if self.executor.elsewhere:
            write_plan(config, cell)
            atomic.make_inside(self.folder, log.parent.name)
        return Job(cell, config, log)

    def _interrupted(self) -> InterruptedRunError:
        done = len(self._outcome.finished)
        what = f"stopped with {done} of {len(self._cells)} runs done, the others saved"
        return InterruptedRunError(self._stopping, what, fix=f"go on with: {self.command}")


def collect(cell: Cell, session: Session) -> Finished | None:
    """Return the records of a cell that is trained and measured as its settings ask, else None."""
    try:
        if not (cell.folder.check(cell.prepared.identity, resume=True) and cell.folder.is_done):
            return None
        found = find_evaluation(cell.folder.path, cell.prepared.measuring, session)
        return (read_run(cell.folder.path), found) if found is not None else None
    except KDError:  # damaged: the cell itself says so when it runs
        return None


def write_plan(path: Path, cell: Cell) -> None:
    """Write a cell's resolved settings for ``kd distill -c``, unless they are there."""
    atomic.make_inside(path.parents[1], path.parent.name)
    text = resolve.to_yaml(cell.settings)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        atomic.write_file(path, text)


def named(report: Report, name: str) -> Report:
    """Return a report that puts a name before every message, and leaves out notes and names of checkpoints."""

    def with_name(event: Event) -> None:
        if event.kind not in ("note", "saved"):
            report(replace(event, message=f"{name}: {event.message}"))

    return with_name
