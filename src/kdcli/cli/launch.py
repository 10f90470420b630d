"""Starts one run as several processes by accelerate's launcher, and reports for all of them."""

import json
import logging
import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from kdcli import distributed
from kdcli.errors import IntegrityError, KDError, MachineError, UsageError
from kdcli.storage import stored

# What the processes of one run leave for the one that started them to say.


RECORDS = "KDCLI_PROCESS_RECORDS"
"""Environment variable: the folder where a process that kd started writes how it ended."""

STOPPED = "STOP"
_LOST = "PROC-01"


@dataclass(frozen=True)
class Ended:
    """How processes ended, as their launcher saw it.

    Args:
        codes: exit codes of those that failed first, by rank; negative for a signal.
        signal: the signal that the launcher itself was sent; 0 for none.
    """

    codes: Mapping[int, int]
    signal: int = 0


class ReportedError(KDError):
    """How a process of the run ended.

    Args:
        text: the line, without the name of the program.
        exit_code: the process' exit code.
    """

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__("PROC-00", text)
        self.exit_code = exit_code

    def __str__(self) -> str:
        return self.what


def is_started_by_kd() -> bool:
    """Whether another process of kd started this one and reports for it."""
    return RECORDS in os.environ and "WORLD_SIZE" in os.environ


def record(code: str, text: str, exit_code: int, also: Sequence[str] = ()) -> None:
    """Write a process' last lines for the process that started it; a full disk must not hide the exit code."""
    path = Path(os.environ[RECORDS]) / f"{distributed.rank()}.json"
    line = {"rank": distributed.rank(), "code": code, "text": text, "exit_code": exit_code, "time": time.time()}
    line |= {"also": [*also]}
    with suppress(OSError):
        path.write_text(json.dumps(line), encoding="utf-8")


def conclude(records: Path, ended: Ended, count: int, saved: int | None, command: str) -> None:
    """Return if all processes did well, else raise one error for all of them.

    An error of a process itself comes first, then a process that was killed, then errors that follow from these.

    Args:
        records: the folder of their last lines.
        ended: how they ended.
        count: how many there were.
        saved: the step of the newest checkpoint; None without one.
        command: what to type to go on.

    Raises:
        KDError: with the exit code of the run.
    """
    lines = [line for path in sorted(records.glob("*.json")) for line in _line(path)]
    own = [line for line in lines if line["code"] not in (_LOST, STOPPED)]
    if own:
        raise _reported(min(own, key=lambda line: (line["rank"] != 0, line["time"])))
    killed = {rank: -code for rank, code in ended.codes.items() if code < 0}
    if killed and not ended.signal:
        raise _killed(*min(killed.items()), count, saved, command)
    if lines:
        raise _reported(min(lines, key=lambda line: (line["code"] != STOPPED, line["rank"])))
    if ended.signal:
        raise ReportedError("stopped at once; what was saved before stays usable", 128 + ended.signal)
    for rank, code in ended.codes.items():
        what = f"process {rank} of {count} ended with exit code {code} and without a message"
        raise MachineError(_LOST, what, fix="run it again with --debug")


class _Line(BaseModel):
    rank: int
    code: str
    text: str
    exit_code: int
    time: float
    also: list[str] = []


def _line(path: Path) -> Iterator[dict[str, Any]]:
    """Yield a process' last line; nothing where a full disk or a kill left half of it."""
    with suppress(IntegrityError, MachineError):
        yield stored.read_record(path, _Line).model_dump()


def saved_step(folder: Path) -> int | None:
    """Return the step of a run's newest checkpoint, None without any."""
    return max((int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoint-????????")), default=None)


def _reported(line: Mapping[str, Any]) -> ReportedError:
    who = f"process {line['rank']}: " if line["rank"] and line["code"] not in (_LOST, STOPPED) else ""
    told = ReportedError(who + line["text"], line["exit_code"])
    told.also = tuple(ReportedError(who + text, line["exit_code"]) for text in line["also"])
    return told


def _killed(rank: int, number: int, count: int, saved: int | None, command: str) -> MachineError:
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    often = ", as a system out of memory does" if number == signal.SIGKILL else ""
    found = f"saved at step {saved}" if saved is not None else "nothing was saved yet"
    what = f"process {rank} of {count} was ended by {name}{often}; {found}"
    return MachineError(_LOST, what, fix=f"go on with: {command}")


PROFILE = Path(__file__).resolve().parent.parent / "profiles" / "data_parallel.yaml"
_SHUTDOWN = "60"


def init_ranks() -> None:
    """Find out which process of the run this is; one that kd started ends with kd.

    Raises:
        UsageError: what a launcher says of this process is not a number.
    """
    distributed.adopt_slurm()
    world, rank, _ = distributed.world(), distributed.rank(), distributed.local_rank()
    if rank >= world:
        what = f"this is process {rank} of {world}, counted from 0"
        raise UsageError("CLI-22", what, where="variable RANK", fix="unset RANK and WORLD_SIZE, or start with torchrun")
    if world > 1:
        os.environ.setdefault("OMP_NUM_THREADS", os.environ.get("SLURM_CPUS_PER_TASK", "1"))
    if is_started_by_kd():
        distributed.end_with(os.getppid())


def launch_arguments(wanted: int, words: Sequence[str]) -> list[str]:
    """Return what accelerate's launcher is given to run ``kd`` in several processes at once.

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


def already_launched(wanted: int) -> bool:
    """Whether this is one of the wanted processes, and not the one that is to start them.

    Raises:
        UsageError: a launcher started another number of processes.
    """
    started = distributed.world() if "WORLD_SIZE" in os.environ else None
    if started is not None and wanted > 1 and started != wanted:
        what = f"a launcher started {started} processes"
        raise UsageError("CLI-22", what, where=f"--gpus {wanted}", fix="leave --gpus out under a launcher")
    return started is not None or wanted == 1


def run_processes(wanted: int, words: Sequence[str], output: Path, command: str) -> None:
    """Start the processes of a run, wait for their end, and report.

    Args:
        wanted: how many train together.
        words: what stands after ``kd``.
        output: the run folder, read for what was saved if a process is lost.
        command: what to type to go on.

    Raises:
        KDError: what ended the run, with its exit code.
    """
    with tempfile.TemporaryDirectory(prefix="kd-processes-") as folder:
        ended = _run(wanted, words, Path(folder))
        conclude(Path(folder), ended, wanted, saved_step(output), command)


def _run(wanted: int, words: Sequence[str], folder: Path) -> Ended:
    """Run the processes to their end without the launcher's own output."""
    surroundings = {
        RECORDS: str(folder),
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


def _launch(arguments: list[str]) -> Ended:
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            launch_command(launch_command_parser().parse_args(arguments))
        except ChildFailedError as error:
            return Ended({rank: failure.exitcode for rank, failure in error.failures.items()})
        except SignalException as error:
            return Ended({}, int(error.sigval))
        finally:
            logging.disable(logging.NOTSET)
    return Ended({})


def _restore(before: Mapping[str, str | None]) -> None:
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def is_first() -> bool:
    """Whether this process writes the output: alone, or rank 0."""
    return distributed.rank() == 0
