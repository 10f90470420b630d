"""Runs cells as child processes on this machine, several at once."""

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress

from kdcli.distill.run import distill
from kdcli.errors import InterruptedRunError, explained
from kdcli.events import Report
from kdcli.loading.session import Session
from kdcli.registry import plugins
from kdcli.storage import atomic
from kdcli.study.executors import child
from kdcli.study.executors.base import Executor, Job, JobResult


class LocalExecutor(Executor):
    """Child processes; on GPUs each has devices of its own.

    Args:
        capacity: cells at once.
        devices: names of the GPUs to share out; none on a CPU.
        each: GPUs of one cell.
    """

    def __init__(self, capacity: int, devices: Sequence[str] = (), each: int = 1) -> None:
        super().__init__(capacity)
        self._each = each
        self._slots = [",".join(devices[at : at + each]) for at in range(0, len(devices) - each + 1, each)]
        self._children: dict[int, tuple[Job, subprocess.Popen[bytes], int]] = {}

    def submit(self, job: Job, report: Report) -> str:
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
        self._children[process.pid] = (job, process, slot)
        return ""

    def poll(self) -> list[JobResult]:
        """Return the children that ended."""
        over = [(pid, job, process) for pid, (job, process, _) in self._children.items() if process.poll() is not None]
        for pid, _, _ in over:
            del self._children[pid]
        return [JobResult(job, process.returncode) for _, job, process in over]

    def stop(self, signal_number: int) -> None:
        """Send the signal on."""
        for _, process, _ in self._children.values():
            process.send_signal(signal_number)

    def close(self) -> None:
        """End the children that still run, with everything they started."""
        for _, process, _ in self._children.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._children.clear()

    def _free_slot(self) -> int:
        taken = [slot for _, _, slot in self._children.values()]
        return min(range(max(1, len(self._slots))), key=taken.count)


# Runs cells one after another in this process; teacher and data are loaded once for all.


class InlineExecutor(Executor):
    """This process.

    Args:
        session: what is loaded already.
        command: what to type to go on after an interruption.
    """

    elsewhere = False

    def __init__(self, session: Session, command: str) -> None:
        super().__init__(capacity=1)
        self._session = session
        self._command = command
        self._ended: list[JobResult] = []

    def submit(self, job: Job, report: Report) -> str:
        """Run the cell to its end; an interruption goes through."""
        cell = job.cell
        try:
            record = distill(cell.config, report, command=self._command, session=self._session, prepared=cell.prepared)
        except InterruptedRunError:
            raise
        except Exception as error:  # one cell must not stop the others, whatever is wrong with it
            known = explained(error) or plugins.blamed(error)
            self._ended.append(JobResult(job, known.exit_code if known is not None else 1, error))
            return ""
        found = (record, record.evaluation) if record.evaluation is not None else None
        self._ended.append(JobResult(job, 0, None, found))
        return ""

    def poll(self) -> list[JobResult]:
        """Return the cell that was run."""
        ended, self._ended = self._ended, []
        return ended

    def stop(self, signal_number: int) -> None:
        """Do nothing: a signal reaches the training loop itself."""
