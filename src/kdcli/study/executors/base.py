"""The interface of executors: submit cells, poll for finished ones, stop."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from kdcli.distill.records import RunRecord
from kdcli.evaluation.records import EvalRecord
from kdcli.events import Report
from kdcli.study.cells import Cell


@dataclass(frozen=True)
class Job:
    """One cell to be run.

    Args:
        cell: what to run.
        config: file of its resolved settings, for executors that run it elsewhere.
        log: file for what it says there.
    """

    cell: Cell
    config: Path
    log: Path


@dataclass(frozen=True)
class JobResult:
    """A job that is over.

    Args:
        job: which.
        exit_code: 0, or how it failed, as the exit code of ``kd``; negative for a signal.
        error: what it raised, where that is known.
        found: its records, where they are known; else they are in its folder.
    """

    job: Job
    exit_code: int
    error: Exception | None = None
    found: tuple[RunRecord, EvalRecord] | None = None


class Executor(ABC):
    """Runs cells; any executor leaves the same folders behind.

    Args:
        capacity: jobs it may hold at once.
    """

    elsewhere = True
    """Whether jobs run outside this process, so that their folders tell how far they are."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity

    @abstractmethod
    def submit(self, job: Job, report: Report) -> str:
        """Start a job, or run it to its end.

        Args:
            job: the cell.
            report: told what happens inside it, where that can be heard.

        Returns:
            what the job is called in the system that runs it, such as a Slurm job id; empty on this machine.
        """

    @abstractmethod
    def poll(self) -> list[JobResult]:
        """Return the jobs that ended since the last call; does not wait."""

    @abstractmethod
    def stop(self, signal_number: int) -> None:
        """Ask every job to save and end; ``poll`` returns them when they have."""

    def close(self) -> None:
        """Let go of what the executor holds; jobs that still run are ended. By default it holds nothing."""
        return
