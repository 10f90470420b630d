"""Tries a chat template in a bounded child process before it runs in ours."""

import os
import resource
import select
import signal
from collections.abc import Callable, Sequence

from kdcli.data.check import Row
from kdcli.errors import InputError

SECONDS = 5.0
_BYTES = 512 * 2**20


def try_template(rows: Sequence[Row], render: Callable[[Row], object], seconds: float = SECONDS) -> None:
    """Render the first and the longest row in a child of limited time and memory.

    Templates come with a tokenizer and may loop or allocate without end. Any other fault is
    left for the real rendering to report.

    Args:
        rows: rows to choose from.
        render: renders one row.
        seconds: time allowed.

    Raises:
        InputError: the template took too long or too much memory.
    """
    if not hasattr(os, "fork") or not rows:
        return
    longest = max(rows, key=lambda row: len(row.prompt))
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _in_child(writing, [rows[0], longest], render)
    os.close(writing)
    try:
        answered = select.select([reading], [], [], seconds)[0]
        verdict = os.read(reading, 1) if answered else b""
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if verdict != b"k":
        spent = "512 MiB" if verdict == b"m" else f"{seconds:g} s"
        raise InputError(
            "TOK-09",
            f"the chat template exceeded {spent}",
            where=rows[0].where,
            fix="do not use this tokenizer's template; --template alpaca or plain",
        )


def _in_child(writing: int, rows: Sequence[Row], render: Callable[[Row], object]) -> None:
    verdict = b"k"
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _limit_memory()
        for row in rows:
            render(row)
    except MemoryError:
        verdict = b"m"
    except BaseException as error:  # whatever it is, the parent meets and reports it again
        verdict = b"m" if isinstance(error.__cause__, MemoryError) else b"k"
    finally:
        os.write(writing, verdict)
        os._exit(0)


def _limit_memory() -> None:
    used = _address_space()
    if used:
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (used + _BYTES, hard))


def _address_space() -> int:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except (OSError, ValueError):
        return 0
