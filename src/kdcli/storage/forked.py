"""Runs untrusted templates and tokenizers in forked processes with limited time and memory."""

import faulthandler
import os
import resource
import select
import signal
import struct
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

CHILDREN = hasattr(os, "fork")
"""Whether :func:`bounded` works in child processes."""
SECONDS = 5.0
"""Processor time for one part."""
_BYTES = 512 * 2**20
_BYTES_PER_CHARACTER = 1024
_CHARACTERS, _ITEMS = 2**18, 500
_WORKERS = 8
_HEAD = struct.Struct("<cq")
_DONE, _FAILED, _MEMORY = b"d", b"f", b"m"

Work = Callable[[range], bytes]


class ExceededError(Exception):
    """A part took more than it may.

    Args:
        item: which item it was.
        spent: what was spent: seconds or memory, in words.
    """

    def __init__(self, item: int, spent: str) -> None:
        super().__init__(f"item {item} took more than {spent}")
        self.item, self.spent = item, spent


def bounded(sizes: Sequence[int], work: Work, seconds: float = SECONDS) -> Iterator[bytes]:
    """Yield what some work makes of items, part by part in their order, computed in child processes.

    A part may spend so many seconds of a processor, and 512 MiB and a KiB a character beyond what this process
    holds. One that needs more is tried again item by item, so that the item can be named. Work that raises an error
    is done once more in this process, which so raises it too. Where processes cannot be copied, or end by themselves
    as they do on systems that forbid some libraries there, all is done here.

    Args:
        sizes: characters of each item.
        work: is given the places of a part's items.
        seconds: processor time for a part, and for an item that is tried by itself.

    Raises:
        ExceededError: names the item.
    """
    parts = _parts(sizes)
    if not CHILDREN:
        yield from map(work, parts)
        return
    count = min(len(parts), _WORKERS, _processors())
    children = [_Child(parts[at::count], sizes, work, seconds) for at in range(count)]
    try:
        for place, part in enumerate(parts):
            answer = children[place % count].answer()
            if not isinstance(answer, str):
                yield work(part) if answer is None else answer
            elif len(part) == 1:
                raise ExceededError(part[0], answer)
            else:
                yield from _one_by_one(part, sizes, work, seconds)
                children[place % count].close()
                rest = parts[place + count :: count]
                children[place % count] = _Child(rest, sizes, work, seconds)
    finally:
        for child in children:
            child.close()


def in_child(work: Callable[[], bytes], *, seconds: float, memory: int) -> bytes | None:
    """Return what the work gives; None where it fails, or takes too long or too much memory.

    Args:
        work: called in a forked child.
        seconds: processor time allowed.
        memory: bytes of address space allowed on top of what this process uses.

    >>> in_child(lambda: b"done", seconds=5.0, memory=2**29)
    b'done'
    """
    if not hasattr(os, "fork"):
        return None
    child = _Child([range(1)], [0], lambda _: work(), seconds, memory)
    try:
        answer = child.answer()
    finally:
        child.close()
    return answer if isinstance(answer, bytes) else None


def _one_by_one(part: range, sizes: Sequence[int], work: Work, seconds: float) -> Iterator[bytes]:
    child = _Child([range(at, at + 1) for at in part], sizes, work, seconds)
    try:
        for at in part:
            answer = child.answer()
            if isinstance(answer, str):
                raise ExceededError(at, answer)
            yield work(range(at, at + 1)) if answer is None else answer
    finally:
        child.close()


def _parts(sizes: Sequence[int]) -> list[range]:
    """Cut items into parts of bounded size, each with at least one item.

    >>> _parts([1, 2**18, 1, 1])
    [range(0, 1), range(1, 2), range(2, 4)]
    """
    parts, start, held = [], 0, 0
    for at, size in enumerate(sizes):
        if at > start and (held + size > _CHARACTERS or at - start >= _ITEMS):
            parts.append(range(start, at))
            start, held = at, 0
        held += size
    return [*parts, range(start, len(sizes))] if len(sizes) > start else parts


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass
class _Child:
    """A process that works through some parts and sends each answer as it is done."""

    parts: Sequence[range]
    sizes: Sequence[int]
    work: Work
    seconds: float
    memory: int = _BYTES

    def __post_init__(self) -> None:
        self._silent = False
        self._reading, writing = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of copying a process with threads; none is used there
            self._process = os.fork()
        if self._process == 0:
            self._run(writing)
        os.close(writing)

    def answer(self) -> bytes | str | None:
        """Return the next part's answer; in words what it exceeded; None where it is to be done here."""
        if not self._process:
            return None
        head = self._read(_HEAD.size)
        if head is None:
            return self._spent()
        state, size = _HEAD.unpack(head)
        if state == _MEMORY:
            return f"{self.memory // 2**20} MiB"
        body = self._read(size)
        if body is None:
            return self._spent()
        return body if state == _DONE else None

    def close(self) -> None:
        """End the process."""
        if self._process:
            os.close(self._reading)
            os.kill(self._process, signal.SIGKILL)
            os.waitpid(self._process, 0)
            self._process = 0

    def _spent(self) -> str | None:
        """Say why no answer came: the processor's time was over, or the memory; None where memory has no bound."""
        if self._silent:
            os.kill(self._process, signal.SIGKILL)
        _, status = os.waitpid(self._process, 0)
        os.close(self._reading)
        self._process = 0
        if self._silent or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF):
            return f"{self.seconds:g} s"
        return f"{self.memory // 2**20} MiB" if _address_space() else None

    def _read(self, size: int) -> bytes | None:
        """Return so many bytes; None where the process ended before, or did not answer in time."""
        held, patience = bytearray(), time.monotonic() + max(120.0, 60 * self.seconds)
        while len(held) < size:
            ready = select.select([self._reading], [], [], max(0.0, patience - time.monotonic()))[0]
            self._silent = not ready
            piece = os.read(self._reading, min(size - len(held), 2**20)) if ready else b""
            if not piece:
                return None
            held += piece
        return bytes(held)

    def _run(self, writing: int) -> None:
        try:
            self._prepare()
            before = _address_space()
            for part in self.parts:
                self._limit(before, sum(self.sizes[at] for at in part))
                state, body = _DONE, b""
                try:
                    body = self.work(part)
                except MemoryError:
                    state = _MEMORY
                except BaseException as error:  # whatever it is, the parent meets and reports it again
                    state = _MEMORY if _is_memory(error) else _FAILED
                signal.setitimer(signal.ITIMER_PROF, 0)
                _send(writing, _HEAD.pack(state, len(body)) + body)
        finally:
            os._exit(0)

    def _prepare(self) -> None:
        faulthandler.disable()
        for number in (signal.SIGPROF, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads of the parent are not here
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # a library that runs out of memory says so before it ends

    def _limit(self, before: int, characters: int) -> None:
        signal.setitimer(signal.ITIMER_PROF, self.seconds)
        if before:
            _, hard = resource.getrlimit(resource.RLIMIT_AS)
            wanted = before + self.memory + _BYTES_PER_CHARACTER * characters
            resource.setrlimit(
                resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
            )


def _is_memory(error: BaseException) -> bool:
    return isinstance(error.__cause__, MemoryError) or isinstance(error.__context__, MemoryError)


def _send(writing: int, body: bytes) -> None:
    view = memoryview(body)
    while view:
        view = view[os.write(writing, view) :]


def _address_space() -> int:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except (OSError, ValueError):
        return 0
