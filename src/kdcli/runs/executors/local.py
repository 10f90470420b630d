"""Runs cells as child processes on this machine, several at once."""

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress

from kdcli import durable, plugins
from kdcli.engine.events import Report
from kdcli.runs.executors import child
from kdcli.runs.executors.base import Ended, Executor, Job


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
        with open(job.log, "wb", opener=durable.open_handle) as log:
            process = subprocess.Popen(
                child.arguments(job.config, job.cell.folder.path, plugins.flags()),
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._children[process.pid] = (job, process, slot)
        return f"process {process.pid}"

    def poll(self) -> list[Ended]:
        """Return the children that ended."""
        over = [(pid, job, process) for pid, (job, process, _) in self._children.items() if process.poll() is not None]
        for pid, _, _ in over:
            del self._children[pid]
        return [Ended(job, process.returncode) for _, job, process in over]

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
