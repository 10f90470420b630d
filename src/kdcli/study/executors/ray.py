"""Runs cells as Ray tasks: on a cluster that runs already, or on one started here."""

import logging
import os
from typing import Any

from kdcli.errors import MachineError
from kdcli.events import Report
from kdcli.registry import plugins
from kdcli.study.executors.base import Executor, Job, JobResult
from kdcli.study.executors.child import run_cell
from kdcli.text import one_line


class RayExecutor(Executor):
    """Ray; each cell asks for its threads and its GPUs, and Ray decides how many fit.

    Args:
        capacity: tasks submitted at once.
        address: a running cluster; None starts one on this machine, reachable from it alone.
        threads: CPUs of one cell.
        gpus: GPUs of one cell; 0 on a CPU.
    """

    def __init__(self, capacity: int, address: str | None, threads: int, gpus: int) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray
        from ray.exceptions import TaskCancelledError

        super().__init__(capacity)
        self._ray = ray
        self._cancelled = TaskCancelledError
        here = {"_node_ip_address": "127.0.0.1", "include_dashboard": False} if address is None else {}
        try:
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **here)
        except Exception as error:  # Ray raises whatever its parts raise
            what = f"cannot be reached or started: {one_line(str(error), 200)}"
            where = f"--ray-address {address}" if address else "--executor ray"
            raise MachineError("EXEC-04", what, where=where, fix="check the address, or leave it out") from error
        self._task = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=0)(run_cell)
        self._jobs: dict[Any, Job] = {}

    def submit(self, job: Job, report: Report) -> str:
        """Hand the cell to Ray: a plain function with texts only."""
        texts = (str(job.config), str(job.cell.folder.path), str(job.log), os.getcwd(), *plugins.flags())
        reference = self._task.remote(*texts)
        self._jobs[reference] = job
        return f"Ray task {reference.hex()[:8]}"

    def poll(self) -> list[JobResult]:
        """Return the tasks that are over."""
        if not self._jobs:
            return []
        over, _ = self._ray.wait(list(self._jobs), num_returns=len(self._jobs), timeout=0)
        return [self._ended(reference) for reference in over]

    def stop(self, signal_number: int) -> None:
        """Interrupt the tasks; each cell saves."""
        for reference in self._jobs:
            self._ray.cancel(reference, force=False)

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        self._ray.shutdown()

    def _ended(self, reference: Any) -> JobResult:
        job = self._jobs.pop(reference)
        try:
            return JobResult(job, int(self._ray.get(reference)))
        except self._cancelled:
            return JobResult(job, 143)
        except Exception as error:  # Ray raises whatever went wrong in the task or on the way
            reason = one_line(str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__, 200)
            return JobResult(job, 4, MachineError("EXEC-03", f"the task ended without a result: {reason}"))
