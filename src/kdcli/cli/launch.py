"""Starts one run as several processes, through accelerate's launcher and a profile of our own."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from kdcli.errors import UsageError

PROFILE = Path(__file__).resolve().parent.parent / "profiles" / "data_parallel.yaml"


def launch_command(processes: int, words: Sequence[str]) -> list[str]:
    """Return the command that runs ``kd`` in several processes at once.

    The profile keeps accelerate from reading the default file that a user may have made for
    something else; port 0 lets several runs on one machine choose ports of their own.

    Args:
        processes: how many; one GPU each.
        words: what stands after ``kd``.

    >>> launch_command(2, ["distill"])[-6:]
    ['2', '--main_process_port', '0', '--module', 'kdcli', 'distill']
    """
    options = ["--config_file", str(PROFILE), "--num_processes", str(processes), "--main_process_port", "0"]
    return [sys.executable, "-m", "accelerate.commands.launch", *options, "--module", "kdcli", *words]


def ensure_processes(wanted: int, words: Sequence[str]) -> None:
    """Go on if this is one of the wanted processes, else replace this process by a launcher of them.

    Raises:
        UsageError: a launcher started another number of processes.
    """
    started = os.environ.get("WORLD_SIZE")
    if started is not None and wanted > 1 and int(started) != wanted:
        what = f"a launcher started {started} processes"
        raise UsageError("CLI-22", what, where=f"--gpus {wanted}", fix="leave --gpus out under a launcher")
    if started is None and wanted > 1:
        os.execv(sys.executable, launch_command(wanted, words))


def is_first() -> bool:
    """Whether this process speaks for the run: alone, or the first of several."""
    return os.environ.get("RANK", "0") == "0"
