"""Chooses and checks the executor of a comparison."""

import importlib.util
import os
from pathlib import Path

from kdcli import distributed
from kdcli.config.schema import CompareConfig
from kdcli.distributed import check_count
from kdcli.errors import MachineError, UsageError
from kdcli.loading.session import Session
from kdcli.models.devices import Device, check_processes
from kdcli.study.executors.base import Executor
from kdcli.study.executors.slurm import check_options

_EXTRAS = {"slurm": "submitit", "ray": "ray"}
_MANY = 10_000


def executor_name(config: CompareConfig) -> str:
    """Return the executor that runs the cells.

    >>> from kdcli.config.schema import ExecutionConfig
    >>> executor_name(CompareConfig()), executor_name(CompareConfig(execution=ExecutionConfig(jobs=2)))
    ('inline', 'local')
    """
    chosen = config.execution.executor
    if chosen != "auto":
        return chosen
    several = (config.execution.jobs or 1) > 1 or config.hardware.gpus > 1
    return "local" if several else "inline"


def check_executor(config: CompareConfig) -> None:
    """Refuse an executor that cannot work here.

    Raises:
        MachineError: its library or its scheduler is not installed.
        UsageError: settings that it does not take.
    """
    name = executor_name(config)
    where = f"--executor {name}"
    library = _EXTRAS.get(name)
    if library is not None and importlib.util.find_spec(library) is None:
        fix = f"pip install 'kdcli[{name}]'"
        raise MachineError("EXEC-01", f"{library} is not installed", where=where, fix=fix)
    if name == "inline" and ((config.execution.jobs or 1) > 1 or config.hardware.gpus > 1):
        what = "runs one cell at a time in this process"
        raise UsageError("CLI-09", what, where=where, fix="leave --executor out, or use --executor local")
    if config.execution.slurm and name != "slurm":
        raise UsageError("CLI-09", "has no effect here", where="--slurm", fix="add --executor slurm")
    if config.execution.ray_address and name != "ray":
        raise UsageError("CLI-09", "has no effect here", where="--ray-address", fix="add --executor ray")
    if name == "slurm":
        check_options(config.execution.slurm)
    if name == "local":
        check_count(config.execution.jobs or 1, distributed.cores(), "CPU cores", "--jobs")
        check_processes(config.hardware)


def with_threads(config: CompareConfig) -> tuple[CompareConfig, list[str]]:
    """Set the CPU threads of cells that run outside this process; their number is part of a run's identity.

    Returns:
        the settings, and notes about them.
    """
    name = executor_name(config)
    if name == "inline" or config.hardware.threads is not None:
        return config, []
    threads = _share_of_cores(config, name)
    hardware = config.hardware.model_copy(update={"threads": threads})
    note = (
        f"hardware.threads is set to {threads} for every cell; the number of threads is part of a run's identity, "
        f"so give --threads {threads} to meet the same cells with another executor"
    )
    return config.model_copy(update={"hardware": hardware}), [note]


def make_executor(config: CompareConfig, device: Device, session: Session, command: str) -> Executor:
    """Return the executor.

    Args:
        config: the study, its threads settled.
        device: where cells compute.
        session: what is loaded already.
        command: what to type to go on after an interruption.
    """
    name, jobs, gpus = executor_name(config), config.execution.jobs, config.hardware.gpus
    if name == "local":
        from kdcli.study.executors.local import LocalExecutor

        return LocalExecutor(jobs or 1, _devices() if device.device.type == "cuda" else (), gpus)
    if name == "slurm":
        from kdcli.study.executors.slurm import SlurmExecutor

        return SlurmExecutor(jobs or _MANY, config.execution.slurm, Path(str(config.output)) / "slurm")
    if name == "ray":
        from kdcli.study.executors.ray import RayExecutor

        wanted = gpus if device.device.type == "cuda" else 0
        return RayExecutor(jobs or _MANY, config.execution.ray_address, config.hardware.threads or 1, wanted)
    from kdcli.study.executors.local import InlineExecutor

    return InlineExecutor(session, command)


def cores() -> int:
    """Return the CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _share_of_cores(config: CompareConfig, name: str) -> int:
    if name == "slurm":
        return int(config.execution.slurm.get("cpus", "1"))
    jobs = config.execution.jobs or (cores() if name == "ray" else 1)
    return max(1, cores() // jobs)


def _devices() -> tuple[str, ...]:
    """Return the names of the GPUs this process may use."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible:
        return tuple(piece.strip() for piece in visible.split(",") if piece.strip())
    return tuple(map(str, range(torch.cuda.device_count())))
