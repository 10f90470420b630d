"""Chooses and checks the executor of a comparison."""

import importlib.util
import os
from pathlib import Path

from kdcli import distributed
from kdcli.config.sections import ExecutionConfig, HardwareConfig
from kdcli.distributed import check_count
from kdcli.errors import MachineError, UsageError
from kdcli.loading.session import Session
from kdcli.models.devices import Device, check_processes
from kdcli.study.executors.base import Executor
from kdcli.study.executors.slurm import check_options

_EXTRAS = {"slurm": "submitit", "ray": "ray"}
_MANY = 10_000


def executor_name(execution: ExecutionConfig, hardware: HardwareConfig) -> str:
    """Return the executor that runs the cells.

    >>> executor_name(ExecutionConfig(), HardwareConfig()), executor_name(ExecutionConfig(jobs=2), HardwareConfig())
    ('inline', 'local')
    """
    chosen = execution.executor
    if chosen != "auto":
        return chosen
    several = (execution.jobs or 1) > 1 or hardware.gpus > 1
    return "local" if several else "inline"


def check_executor(execution: ExecutionConfig, hardware: HardwareConfig) -> None:
    """Refuse an executor that cannot work here.

    Raises:
        MachineError: its library or its scheduler is not installed.
        UsageError: settings that it does not take.
    """
    name = executor_name(execution, hardware)
    where = f"--executor {name}"
    library = _EXTRAS.get(name)
    if library is not None and importlib.util.find_spec(library) is None:
        fix = f"pip install 'kdcli[{name}]'"
        raise MachineError("EXEC-01", f"{library} is not installed", where=where, fix=fix)
    if name == "inline" and ((execution.jobs or 1) > 1 or hardware.gpus > 1):
        what = "does one run at a time in this process"
        raise UsageError("CLI-09", what, where=where, fix="leave --executor out, or use --executor local")
    if execution.slurm and name != "slurm":
        raise UsageError("CLI-09", "has no effect here", where="--slurm", fix="add --executor slurm")
    if execution.ray_address and name != "ray":
        raise UsageError("CLI-09", "has no effect here", where="--ray-address", fix="add --executor ray")
    if name == "slurm":
        check_options(execution.slurm)
    if name == "local":
        check_count(execution.jobs or 1, distributed.cores(), "CPU cores", "--jobs")
        check_processes(hardware)


def with_threads(execution: ExecutionConfig, hardware: HardwareConfig) -> tuple[HardwareConfig, list[str]]:
    """Set the CPU threads of cells that run outside this process; their number is part of a run's identity.

    Returns:
        the hardware of every cell, and notes about it.
    """
    name = executor_name(execution, hardware)
    if name == "inline" or hardware.threads is not None:
        return hardware, []
    threads = _share_of_cores(execution, name)
    note = (
        f"hardware.threads is set to {threads} for every run; the number of threads is part of a run's identity, "
        f"so give --threads {threads} to find the same runs with another executor"
    )
    return hardware.model_copy(update={"threads": threads}), [note]


def make_executor(
    execution: ExecutionConfig, hardware: HardwareConfig, study: Path, device: Device, session: Session, command: str
) -> Executor:
    """Return the executor.

    Args:
        execution: where cells run, and how many at once.
        hardware: of every cell, its threads settled.
        study: the study's folder.
        device: where cells compute.
        session: what is loaded already.
        command: what to type to go on after an interruption.
    """
    name, jobs, gpus = executor_name(execution, hardware), execution.jobs, hardware.gpus
    if name == "local":
        from kdcli.study.executors.local import LocalExecutor

        return LocalExecutor(jobs or 1, _devices() if device.device.type == "cuda" else (), gpus)
    if name == "slurm":
        from kdcli.study.executors.slurm import SlurmExecutor

        return SlurmExecutor(jobs or _MANY, execution.slurm, study / "slurm")
    if name == "ray":
        from kdcli.study.executors.ray import RayExecutor

        wanted = gpus if device.device.type == "cuda" else 0
        return RayExecutor(jobs or _MANY, execution.ray_address, hardware.threads or 1, wanted)
    from kdcli.study.executors.local import InlineExecutor

    return InlineExecutor(session, command)


def cores() -> int:
    """Return the CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _share_of_cores(execution: ExecutionConfig, name: str) -> int:
    if name == "slurm":
        return int(execution.slurm.get("cpus", "1"))
    jobs = execution.jobs or (cores() if name == "ray" else 1)
    return max(1, cores() // jobs)


def _devices() -> tuple[str, ...]:
    """Return the names of the GPUs this process may use."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible:
        return tuple(piece.strip() for piece in visible.split(",") if piece.strip())
    return tuple(map(str, range(torch.cuda.device_count())))
