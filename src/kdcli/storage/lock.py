"""A lock per run folder."""

import fcntl
import json
import os
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from kdcli.errors import BusyError
from kdcli.storage import atomic, stored
from kdcli.text import one_line

NAME = ".lock"
_HELD: set[Path] = set()
_FLOCK = "hhqqi" if sys.platform == "linux" else "qqihh"


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Hold a folder's lock; the system drops it with the process, whatever ends that.

    It would also be dropped if this process opened and closed the lock file again; only :func:`is_held`
    may look at it meanwhile.

    Raises:
        BusyError: another process holds it; names process, machine and start.
        MachineError: the folder may not be written.
    """
    path = folder / NAME
    try:
        handle = atomic.open_handle(path, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise atomic.disk_error(error, path) from error
    try:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise _busy(folder, os.pread(handle, 4096, 0)) from error
        try:
            _sign(handle)
        except OSError as error:
            raise atomic.disk_error(error, path) from error
        _HELD.add(path.resolve())
        yield
    finally:
        _HELD.discard(path.resolve())
        os.close(handle)


def holds(folder: Path) -> bool:
    """Whether this process holds a folder's lock."""
    return (folder / NAME).resolve() in _HELD


def is_held(folder: Path) -> bool:
    """Whether a process holds a folder's lock; never takes it, and never drops the one this process holds."""
    path = folder / NAME
    if holds(folder):
        return True
    try:
        handle = atomic.open_handle(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        answer = fcntl.fcntl(handle, fcntl.F_GETLK, _request(fcntl.F_WRLCK))
        return _kind(answer) != fcntl.F_UNLCK
    except OSError:
        return False
    finally:
        os.close(handle)


def _request(kind: int) -> bytes:
    """Return a ``struct flock`` over the whole file."""
    values = (kind, os.SEEK_SET, 0, 0, 0) if sys.platform == "linux" else (0, 0, 0, kind, os.SEEK_SET)
    return struct.pack(_FLOCK, *values)


def _kind(answer: bytes) -> int:
    return struct.unpack(_FLOCK, answer)[0 if sys.platform == "linux" else 3]


def _sign(handle: int) -> None:
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "start": datetime.now(UTC).isoformat("T", "seconds")}
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps(holder).encode(), 0)


def _busy(folder: Path, raw: bytes) -> BusyError:
    try:
        holder = stored.parse(raw)
        who = f"process {holder['pid']} on {holder['host']} since {holder['start']}"
    except (ValueError, KeyError, TypeError):
        who = "another process"
    return BusyError(
        "RUN-11", f"held by {one_line(who)}", where=str(folder), fix="wait for it to end, or choose another -o"
    )
