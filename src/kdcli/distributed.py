"""Rank and world size of this process, whether launched by kd, torchrun, accelerate or srun."""

import ctypes
import os
import re
import signal
import sys
from collections.abc import Mapping, MutableMapping

from kdcli.errors import MachineError, UsageError

_PARENT_DEATH = 1  # PR_SET_PDEATHSIG
_FIRST_PORT, _PORTS = 20_000, 20_000


def rank(environ: Mapping[str, str] = os.environ) -> int:
    """Return this process' number among those of the run, from 0.

    >>> rank({}), rank({"RANK": "3"})
    (0, 3)
    """
    return _number(environ, "RANK", "0")


def world(environ: Mapping[str, str] = os.environ) -> int:
    """Return how many processes train together.

    >>> world({}), world({"WORLD_SIZE": "4"})
    (1, 4)
    """
    return _number(environ, "WORLD_SIZE", "1")


def local_rank(environ: Mapping[str, str] = os.environ) -> int:
    """Return this process' number among those on its machine: the number of its GPU.

    >>> local_rank({"RANK": "9", "LOCAL_RANK": "1"})
    1
    """
    return _number(environ, "LOCAL_RANK", environ.get("RANK", "0"))


def _number(environ: Mapping[str, str], name: str, otherwise: str) -> int:
    """Return a launcher's number.

    Raises:
        UsageError: it is none.
    """
    text = environ.get(name, otherwise)
    if not (text.isascii() and text.isdecimal()) or (name == "WORLD_SIZE" and not int(text[:9])) or len(text) > 9:
        what = f'must be a whole number, got "{text[:40]}"'
        fix = f"unset {name}, or set RANK, WORLD_SIZE and LOCAL_RANK as torchrun does"
        raise UsageError("CLI-22", what, where=f"variable {name}", fix=fix)
    return int(text)


def adopt_slurm(environ: MutableMapping[str, str] = os.environ) -> None:
    """Take rank and address from Slurm, where srun started several tasks and no launcher has set them.

    The first machine of the step holds the rendezvous, at a port that follows from the numbers of job and step.
    A batch script itself, and srun with one task, are no run of several processes.

    >>> found = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1",
    ...          "SLURM_JOB_ID": "77", "SLURM_STEP_NODELIST": "gpu[07-08]"}
    >>> adopt_slurm(found)
    >>> found["RANK"], found["WORLD_SIZE"], found["LOCAL_RANK"], found["MASTER_ADDR"], found["MASTER_PORT"]
    ('3', '4', '1', 'gpu07', '20077')
    """
    tasks = environ.get("SLURM_STEP_NUM_TASKS") or environ.get("SLURM_NTASKS", "1")
    if "WORLD_SIZE" in environ or "SLURM_STEP_ID" not in environ or "SLURM_PROCID" not in environ or tasks == "1":
        return
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST", "localhost")
    number = _number(environ, "SLURM_JOB_ID", "0") + 101 * _number(environ, "SLURM_STEP_ID", "0")
    environ["RANK"], environ["WORLD_SIZE"] = environ["SLURM_PROCID"], tasks
    environ["LOCAL_RANK"] = environ.get("SLURM_LOCALID", "0")
    environ.setdefault("MASTER_ADDR", first_host(nodes))
    environ.setdefault("MASTER_PORT", str(_FIRST_PORT + number % _PORTS))


def first_host(nodes: str) -> str:
    """Return the first machine of a Slurm list.

    >>> first_host("gpu[07-08,11],cpu1"), first_host("one,two"), first_host("a[3,5]-ib")
    ('gpu07', 'one', 'a3-ib')
    """
    found = re.match(r"([^,\[]*)(?:\[(\w+)[^\]]*\]([^,\[]*))?", nodes)
    return "".join(piece or "" for piece in found.groups()) if found else nodes


def end_with(parent: int) -> None:
    """Ask the system for SIGTERM when the parent ends, so that no process outlives it for long; Linux only.

    Args:
        parent: its process id; if it ended before the request was made, this process ends now.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PARENT_DEATH, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(143)


def cores() -> int:
    """Return the CPU cores of this machine."""
    return os.cpu_count() or 1


def check_count(wanted: int, most: int, what: str, where: str) -> None:
    """Refuse a number of the user's that is beyond what the machine has.

    Args:
        wanted: the number.
        most: how many there are.
        what: of what.
        where: the flag or setting that holds it.

    Raises:
        MachineError: HW-01.

    >>> check_count(9, 2, "CPU cores", "--threads")
    Traceback (most recent call last):
    ...
    kdcli.errors.MachineError: error[HW-01]: --threads: 9 are asked for, there are 2 CPU cores. Fix: give 2 at most
    """
    if wanted > most:
        what = f"{wanted:,} are asked for, there are {most:,} {what}"
        raise MachineError("HW-01", what, where=where, fix=f"give {most:,} at most")
