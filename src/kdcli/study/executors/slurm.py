"""Runs cells as Slurm jobs through submitit; ``cluster=local`` runs the same jobs on this machine."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdcli.errors import MachineError, UsageError
from kdcli.events import Report
from kdcli.registry import plugins
from kdcli.study.executors.base import Executor, Job
from kdcli.study.executors.child import run_cell
from kdcli.text import one_line

_NAMES = {
    "time": "timeout_min",
    "gpus": "gpus_per_node",
    "cpus": "cpus_per_task",
    "mem_gb": "mem_gb",
    "partition": "slurm_partition",
    "account": "slurm_account",
    "qos": "slurm_qos",
    "constraint": "slurm_constraint",
}
_NUMBERS = {"time", "gpus", "cpus", "mem_gb"}
_MANY_DAYS = 60 * 24 * 30


class SlurmExecutor(Executor[Any]):
    """Slurm, or submitit's stand-in for it on this machine.

    Args:
        capacity: jobs submitted at once.
        options: what ``--slurm`` was given.
        folder: where submitit keeps its files.
    """

    def __init__(self, capacity: int, options: Mapping[str, str], folder: Path) -> None:
        import submitit

        super().__init__(capacity)
        check_options(options)
        local = options.get("cluster") == "local"
        self._submitit = submitit.AutoExecutor(folder=folder, cluster="local" if local else "slurm")
        parameters = {_NAMES[name]: value for name, value in _parameters(options).items()}
        if local:
            parameters = {"timeout_min": _MANY_DAYS, **parameters}
        self._submitit.update_parameters(name="kd", **parameters)

    def stop(self, signal_number: int) -> None:
        """Cancel the jobs; each cell saves in the time Slurm leaves it."""
        for handle in self._jobs:
            handle.cancel(check=False)

    def _start(self, job: Job, report: Report) -> tuple[Any, str]:
        """Submit the cell: a plain function with texts only."""
        texts = (str(job.config), str(job.cell.folder.path), str(job.log), os.getcwd(), *plugins.flags())
        handle = self._submitit.submit(run_cell, *texts)
        return handle, f"Slurm job {handle.job_id}"


def check_options(options: Mapping[str, str]) -> None:
    """Refuse options that are not known and a machine without Slurm, before any work.

    Raises:
        UsageError: an unknown name, or text where a number is needed.
        MachineError: there is no Slurm here.
    """
    for name in options:
        if name not in _NAMES and name != "cluster":
            known = ", ".join([*_NAMES, "cluster"])
            raise UsageError("CLI-19", f"{one_line(name, 40)} is not known", where="--slurm", fix=f"there are {known}")
    _parameters(options)
    if options.get("cluster", "slurm") not in ("slurm", "local"):
        raise UsageError("CLI-06", "cluster must be slurm or local", where="--slurm", fix="leave it out")
    if options.get("cluster") != "local" and shutil.which("sbatch") is None:
        fix = "run this on a login node, or try --slurm cluster=local"
        raise MachineError("EXEC-02", "no sbatch on this machine", where="--executor slurm", fix=fix)


def _parameters(options: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {name: value for name, value in options.items() if name in _NAMES}
    for name in _NUMBERS & found.keys():
        if not found[name].isdecimal():
            what = f'{name} must be a whole number, got "{one_line(found[name], 40)}"'
            raise UsageError("CLI-07", what, where="--slurm", fix="time is in minutes" if name == "time" else "")
        found[name] = int(found[name])
    return found
