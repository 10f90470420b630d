"""Runs cells as Ray tasks: on a cluster that runs already, or on one started here."""

import logging
import os
from typing import Any

from kdcli.errors import MachineError
from kdcli.events import Report
from kdcli.registry import plugins
from kdcli.study.executors.base import Executor, Future, Job
from kdcli.study.executors.child import run_cell
from kdcli.text import one_line


class RayExecutor(Executor[Future]):
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

        super().__init__(capacity, cancelled=TaskCancelledError)
        self._ray = ray
        here = {"_node_ip_address": "127.0.0.1", "include_dashboard": False} if address is None else {}
        try:
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **here)
        except Exception as error:  # Ray raises whatever its parts raise
            what = f"cannot be reached or started: {one_line(str(error), 200)}"
            where = f"--ray-address {address}" if address else "--executor ray"
            raise MachineError("EXEC-04", what, where=where, fix="check the address, or leave it out") from error
        self._task = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=0)(run_cell)
        self._references: list[Any] = []

    def stop(self, signal_number: int) -> None:
        """Interrupt the tasks; each cell saves."""
        for reference in self._references:  # cancelling one that is over does nothing
            self._ray.cancel(reference, force=False)

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        self._ray.shutdown()

    def _start(self, job: Job, report: Report) -> tuple[Future, str]:
        """Hand the cell to Ray: a plain function with texts only."""
        texts = (str(job.config), str(job.cell.folder.path), str(job.log), os.getcwd(), *plugins.flags())
        reference = self._task.remote(*texts)
        self._references.append(reference)
        return reference.future(), f"Ray task {reference.hex()[:8]}"
