"""Runs cells on this machine: as child processes, several at once, or one after another in this process."""

import os
import signal
import subprocess
from collections.abc import Sequence
from concurrent import futures
from contextlib import suppress
from dataclasses import dataclass

from kdcli.distill.run import distill
from kdcli.errors import InterruptedRunError
from kdcli.events import Report
from kdcli.loading.session import Session
from kdcli.registry import plugins
from kdcli.storage import atomic
from kdcli.study.executors import child
from kdcli.study.executors.base import Executor, Job


@dataclass(frozen=True, eq=False)
class _Child:
    """A child process as a future; ``slot`` is its share of the GPUs."""

    process: "subprocess.Popen[bytes]"
    slot: int

    def done(self) -> bool:
        return self.process.poll() is not None

    def result(self) -> int:
        return self.process.wait()


class LocalExecutor(Executor[_Child]):
    """Child processes; on GPUs each has devices of its own.

    Args:
        capacity: cells at once.
        devices: names of the GPUs to share out; none on a CPU.
        each: GPUs of one cell.
    """

    def __init__(self, capacity: int, devices: Sequence[str] = (), each: int = 1) -> None:
        super().__init__(capacity)
        self._slots = [",".join(devices[at : at + each]) for at in range(0, len(devices) - each + 1, each)]

    def stop(self, signal_number: int) -> None:
        """Send the signal on."""
        for running in self._jobs:
            running.process.send_signal(signal_number)

    def close(self) -> None:
        """End the children that still run, with everything they started."""
        for running in self._jobs:
            with suppress(ProcessLookupError):
                os.killpg(running.process.pid, signal.SIGKILL)
            running.process.wait()
        self._jobs.clear()

    def _start(self, job: Job, report: Report) -> tuple[_Child, str]:
        """Start a child in a session of its own: the terminal's Ctrl-C reaches only the parent, which forwards it."""
        slot = self._free_slot()
        environ = {**os.environ, "CUDA_VISIBLE_DEVICES": self._slots[slot]} if self._slots else None
        with open(job.log, "wb", opener=atomic.open_handle) as log:
            process = subprocess.Popen(
                child.arguments(job.config, job.cell.folder.path, plugins.flags()),
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return _Child(process, slot), ""

    def _free_slot(self) -> int:
        taken = [running.slot for running in self._jobs]
        return min(range(max(1, len(self._slots))), key=taken.count)


class InlineExecutor(Executor["futures.Future[int]"]):
    """This process: one cell after another; teacher and data are loaded once for all.

    Args:
        session: what is loaded already.
        command: what to type to go on after an interruption.
    """

    elsewhere = False

    def __init__(self, session: Session, command: str) -> None:
        super().__init__(capacity=1)
        self._session = session
        self._command = command

    def stop(self, signal_number: int) -> None:
        """Do nothing: a signal reaches the training loop itself."""

    def _start(self, job: Job, report: Report) -> tuple["futures.Future[int]", str]:
        """Run the cell to its end; an interruption goes through."""
        cell, future = job.cell, futures.Future[int]()
        try:
            distill(cell.config, report, command=self._command, session=self._session, prepared=cell.prepared)
        except InterruptedRunError:
            raise
        except Exception as error:
            future.set_exception(error)
        else:
            future.set_result(0)
        return future, ""
