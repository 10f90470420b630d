"""Runs a piece of foreign work in a child process of bounded time and memory, and returns what it gave."""

import os
import resource
import select
import signal
import time
from collections.abc import Callable

_MOST_BYTES = 2**20


def in_child(work: Callable[[], bytes], *, seconds: float, memory: int) -> bytes | None:
    """Return what the work gives; None where it fails, takes too long or too much memory, or gives more than 1 MiB.

    Args:
        work: called in a forked child, whose standard streams are those of this process.
        seconds: time allowed.
        memory: bytes of address space allowed on top of what this process uses.

    >>> in_child(lambda: b"done", seconds=5.0, memory=2**29)
    b'done'
    """
    if not hasattr(os, "fork"):
        return None
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _work(work, writing, memory)
    os.close(writing)
    try:
        found = _read(reading, time.monotonic() + seconds)
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return found[1:] if found is not None and found[:1] == b"k" else None


def _read(reading: int, until: float) -> bytes | None:
    """Return everything up to the end of a pipe; None where the end does not come in time, or too much before it."""
    found = b""
    while len(found) <= _MOST_BYTES:
        if not select.select([reading], [], [], max(0.0, until - time.monotonic()))[0]:
            return None
        part = os.read(reading, 65536)
        if not part:
            return found
        found += part
    return None


def _work(work: Callable[[], bytes], writing: int, memory: int) -> None:
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _limit(memory)
        said = b"k" + work()
        while said:
            said = said[os.write(writing, said) :]
    finally:
        os._exit(0)


def _limit(memory: int) -> None:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
    except (OSError, ValueError):
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + memory, hard))
