"""Standard streams that may be closed or full: what is lost decides the exit code, without a traceback."""

import io
import os
import sys
from contextlib import suppress
from typing import Any

from kdcli.errors import MachineError


class Closed(io.TextIOBase):
    """Stands for a standard output that was closed: there is nothing to write to.

    Args:
        name: what to call it.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self._called = name

    def write(self, text: str) -> int:
        """Refuse.

        Raises:
            MachineError: it is closed.
        """
        fix = "leave it open, or send it to a file or to /dev/null"
        raise MachineError("ENV-03", "is closed, and the result cannot be shown", where=self._called, fix=fix)


class Remarks:
    """Standard error that never fails: a full disk must not end the command.

    Args:
        stream: what is written to; None where it was closed.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream if stream is not None else open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115

    def write(self, text: str) -> int:
        """Write, or ignore that it fails; only a closed pipe counts."""
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush, or ignore that it fails."""
        self._try(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, act: Any) -> None:
        try:
            act()
        except BrokenPipeError:
            raise
        except OSError:
            return


def prepare() -> None:
    """Make the streams of this process such that any text can be written, and failing to write a note is no error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if sys.stdout is None:
        sys.stdout = Closed("standard output")
    sys.stderr = Remarks(sys.stderr)


def let_go() -> None:
    """Drop what could not be written, so that the interpreter does not try again while it ends."""
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), number)
