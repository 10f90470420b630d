"""Starts one run as several processes, through accelerate's launcher and a profile of our own; speaks for them."""

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from kdcli import processes
from kdcli.cli import ranks
from kdcli.errors import UsageError

PROFILE = Path(__file__).resolve().parent.parent / "profiles" / "data_parallel.yaml"
_SHUTDOWN = "60"


def join() -> None:
    """Find out which process of the run this is; one that kd started ends with kd.

    Raises:
        UsageError: what a launcher says of this process is not a number.
    """
    processes.adopt_slurm()
    world, rank, _ = processes.world(), processes.rank(), processes.local_rank()
    if rank >= world:
        what = f"this is process {rank} of {world}, counted from 0"
        raise UsageError("CLI-22", what, where="variable RANK", fix="unset RANK and WORLD_SIZE, or start with torchrun")
    if world > 1:
        os.environ.setdefault("OMP_NUM_THREADS", os.environ.get("SLURM_CPUS_PER_TASK", "1"))
    if ranks.is_started_by_kd():
        processes.end_with(os.getppid())


def launch_arguments(wanted: int, words: Sequence[str]) -> list[str]:
    """Return what accelerate's launcher is told to run ``kd`` in several processes at once.

    The profile keeps accelerate from reading the default file that a user may have made for
    something else; port 0 lets several runs on one machine choose ports of their own.

    Args:
        wanted: how many; one GPU each.
        words: what stands after ``kd``.

    >>> launch_arguments(2, ["distill"])[-6:]
    ['2', '--main_process_port', '0', '--module', 'kdcli', 'distill']
    """
    options = ["--config_file", str(PROFILE), "--num_processes", str(wanted), "--main_process_port", "0"]
    return [*options, "--module", "kdcli", *words]


def are_started(wanted: int) -> bool:
    """Whether this is one of the wanted processes, and not the one that is to start them.

    Raises:
        UsageError: a launcher started another number of processes.
    """
    started = processes.world() if "WORLD_SIZE" in os.environ else None
    if started is not None and wanted > 1 and started != wanted:
        what = f"a launcher started {started} processes"
        raise UsageError("CLI-22", what, where=f"--gpus {wanted}", fix="leave --gpus out under a launcher")
    return started is not None or wanted == 1


def run_processes(wanted: int, words: Sequence[str], output: Path, command: str) -> None:
    """Start the processes of a run, wait for their end, and speak for them.

    Args:
        wanted: how many train together.
        words: what stands after ``kd``.
        output: the run folder, which tells what was saved if a process is lost.
        command: what to type to go on.

    Raises:
        KDError: what ended the run, with its exit code.
    """
    with tempfile.TemporaryDirectory(prefix="kd-processes-") as folder:
        ended = _run(wanted, words, Path(folder))
        ranks.conclude(Path(folder), ended, wanted, ranks.saved_step(output), command)


def _run(wanted: int, words: Sequence[str], folder: Path) -> ranks.Ended:
    """Run the processes to their end; their launcher keeps silent."""
    surroundings = {
        ranks.RECORDS: str(folder),
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": _SHUTDOWN,
        "LOGLEVEL": "CRITICAL",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // wanted))),
    }
    if not {"", str(Path.cwd())} & set(sys.path):  # what runs must not depend on the files of the working folder
        surroundings["PYTHONSAFEPATH"] = "1"
    before = {name: os.environ.get(name) for name in surroundings}
    os.environ.update(surroundings)
    try:
        return _launch(launch_arguments(wanted, words))
    finally:
        _restore(before)


def _launch(arguments: list[str]) -> ranks.Ended:
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            launch_command(launch_command_parser().parse_args(arguments))
        except ChildFailedError as error:
            return ranks.Ended({rank: failure.exitcode for rank, failure in error.failures.items()})
        except SignalException as error:
            return ranks.Ended({}, int(error.sigval))
        finally:
            logging.disable(logging.NOTSET)
    return ranks.Ended({})


def _restore(before: Mapping[str, str | None]) -> None:
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def is_first() -> bool:
    """Whether this process speaks for the run: alone, or the first of several."""
    return processes.rank() == 0
