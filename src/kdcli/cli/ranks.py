"""What the processes of one run leave for the one that started them to say."""

import json
import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from kdcli import processes, stored
from kdcli.errors import IntegrityError, KDError, MachineError

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


class ToldError(KDError):
    """What a process of the run had to say at its end.

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
    """Whether another process of kd started this one and speaks for it."""
    return RECORDS in os.environ and "WORLD_SIZE" in os.environ


def record(code: str, text: str, exit_code: int) -> None:
    """Leave a process' last line where the one that started it looks; a full disk must not hide the exit code."""
    path = Path(os.environ[RECORDS]) / f"{processes.rank()}.json"
    line = {"rank": processes.rank(), "code": code, "text": text, "exit_code": exit_code, "time": time.time()}
    with suppress(OSError):
        path.write_text(json.dumps(line), encoding="utf-8")


def conclude(records: Path, ended: Ended, count: int, saved: int | None, command: str) -> None:
    """Return if all processes did well, else raise what is to be said, one line for all of them.

    An error of a process' own comes first, then a process that was killed, then what the others made of that.

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
        raise _told(min(own, key=lambda line: (line["rank"] != 0, line["time"])))
    killed = {rank: -code for rank, code in ended.codes.items() if code < 0}
    if killed and not ended.signal:
        raise _killed(*min(killed.items()), count, saved, command)
    if lines:
        raise _told(min(lines, key=lambda line: (line["code"] != STOPPED, line["rank"])))
    if ended.signal:
        raise ToldError("stopped at once; what was saved before stays usable", 128 + ended.signal)
    for rank, code in ended.codes.items():
        what = f"process {rank} of {count} ended with exit code {code} and said nothing"
        raise MachineError(_LOST, what, fix="run it again with --debug")


class _Line(BaseModel):
    rank: int
    code: str
    text: str
    exit_code: int
    time: float


def _line(path: Path) -> Iterator[dict[str, Any]]:
    """Yield a process' last line; nothing where a full disk or a kill left half of it."""
    with suppress(IntegrityError, MachineError):
        yield stored.read_record(path, _Line).model_dump()


def saved_step(folder: Path) -> int | None:
    """Return the step of a run's newest checkpoint, None without any."""
    return max((int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoint-????????")), default=None)


def _told(line: Mapping[str, Any]) -> ToldError:
    who = f"process {line['rank']}: " if line["rank"] and line["code"] not in (_LOST, STOPPED) else ""
    return ToldError(who + line["text"], line["exit_code"])


def _killed(rank: int, number: int, count: int, saved: int | None, command: str) -> MachineError:
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    often = ", as a system out of memory does" if number == signal.SIGKILL else ""
    found = f"saved at step {saved}" if saved is not None else "nothing was saved yet"
    what = f"process {rank} of {count} was ended by {name}{often}; {found}"
    return MachineError(_LOST, what, fix=f"go on with: {command}")
