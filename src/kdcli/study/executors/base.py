"""The interface of executors: submit cells, poll for finished ones, stop."""

from abc import ABC, abstractmethod
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar, runtime_checkable

from kdcli.errors import MachineError, explained
from kdcli.events import Report
from kdcli.registry import plugins
from kdcli.study.cells import Cell
from kdcli.text import one_line


@dataclass(frozen=True)
class Job:
    """One cell to be run.

    Args:
        cell: what to run.
        config: file of its resolved settings, for executors that run it elsewhere.
        log: file for its output there.
    """

    cell: Cell
    config: Path
    log: Path


@dataclass(frozen=True)
class JobResult:
    """A job that is over; the records of one that ended well are in its folder.

    Args:
        job: which.
        exit_code: 0, or how it failed, as the exit code of ``kd``; negative for a signal.
        error: what it raised, where that is known.
    """

    job: Job
    exit_code: int
    error: Exception | None = None


@runtime_checkable
class Future(Protocol):
    """A job under way: the part that futures of ``concurrent.futures``, those of Ray, and jobs of submitit share."""

    def done(self) -> bool:
        """Whether the job is over; does not wait."""
        ...

    def result(self) -> int:
        """Return the exit code of ``kd distill``, or raise the reason why there is none."""
        ...


FutureT = TypeVar("FutureT", bound=Future)


class Executor(ABC, Generic[FutureT]):
    """Runs cells; any executor leaves the same folders behind.

    Args:
        capacity: jobs it may hold at once.
        cancelled: what the future of a job that was stopped raises.
    """

    elsewhere = True
    """Whether jobs run outside this process, so that their progress is read from their folders."""

    def __init__(self, capacity: int, cancelled: type[Exception] = CancelledError) -> None:
        self.capacity = capacity
        self._cancelled = cancelled
        self._jobs: dict[FutureT, Job] = {}

    def submit(self, job: Job, report: Report) -> str:
        """Start a job, or run it to its end.

        Args:
            job: the cell.
            report: gets the events of a cell that runs in this process.

        Returns:
            what the job is called in the system that runs it, such as a Slurm job id; empty on this machine.
        """
        future, name = self._start(job, report)
        self._jobs[future] = job
        return name

    def poll(self) -> list[JobResult]:
        """Return the jobs that ended since the last call; does not wait."""
        over = [future for future in self._jobs if future.done()]
        return [self._ended(self._jobs.pop(future), future) for future in over]

    @abstractmethod
    def _start(self, job: Job, report: Report) -> tuple[FutureT, str]:
        """Start a job; return its future, and its name in the system that runs it."""

    @abstractmethod
    def stop(self, signal_number: int) -> None:
        """Ask every job to save and end; ``poll`` returns them when they have."""

    def close(self) -> None:
        """Release what the executor holds; jobs that still run are ended. By default it holds nothing."""
        return

    def _ended(self, job: Job, future: FutureT) -> JobResult:
        try:
            return JobResult(job, future.result())
        except self._cancelled:
            return JobResult(job, 143)
        except Exception as error:  # whatever is wrong with one cell must not stop the others
            if self.elsewhere:
                lines = str(error).strip().splitlines() or [type(error).__name__]
                what = f"the job ended without a result: {one_line(lines[-1], 200)}"
                error = MachineError("EXEC-03", what, where=str(job.log))
            known = explained(error) or plugins.blamed(error)
            return JobResult(job, known.exit_code if known is not None else 1, error)
