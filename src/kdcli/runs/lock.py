"""One process at a time in a run folder."""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from kdcli import durable
from kdcli.errors import BusyError
from kdcli.text import one_line

NAME = ".lock"


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Hold a folder's lock; the system drops it with the process, whatever ends that.

    It is also dropped when this process opens and closes the lock file again: do not read it meanwhile.

    Raises:
        BusyError: another process holds it; names process, machine and start.
        MachineError: the folder may not be written.
    """
    path = folder / NAME
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise durable.refused(error, path) from error
    try:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise _busy(folder, os.pread(handle, 4096, 0)) from error
        _sign(handle)
        yield
    finally:
        os.close(handle)


def _sign(handle: int) -> None:
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "start": datetime.now(UTC).isoformat("T", "seconds")}
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps(holder).encode(), 0)


def _busy(folder: Path, raw: bytes) -> BusyError:
    try:
        holder = json.loads(raw)
        who = f"process {holder['pid']} on {holder['host']} since {holder['start']}"
    except (ValueError, KeyError, TypeError):
        who = "another process"
    return BusyError(
        "RUN-11", f"held by {one_line(who)}", where=str(folder), fix="wait for it to end, or choose another -o"
    )
