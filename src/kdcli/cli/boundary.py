"""The only place where errors are printed: one line, and an exit code that scripts can rely on."""

import contextvars
import errno
import os
import re
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import typer

from kdcli import durable, processes
from kdcli.cli import ranks
from kdcli.cli.flags import canonical
from kdcli.errors import InterruptedRunError, KDError, MachineError, UsageError
from kdcli.spelling import ALIASES, nearest
from kdcli.text import one_line

RUN_FOLDER: contextvars.ContextVar[Path | None] = contextvars.ContextVar("run folder", default=None)
"""Where the command at hand keeps its log, once it is known."""

ARGUMENTS: contextvars.ContextVar[tuple[str, ...]] = contextvars.ContextVar("arguments", default=())
"""What stands after ``kd`` on the command line at hand."""

_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EMFILE, errno.EIO, errno.ENOMEM}
_WIDTH = 4000

PIPE_CLOSED = 141
"""Exit code when the reader of our output has gone: 128 + SIGPIPE."""


class Terminated(KeyboardInterrupt):
    """SIGTERM came where nobody waits for it; a training hears it itself and saves first."""


def guarded(work: Callable[[], int], *, debug: bool) -> int:
    """Run a command; turn whatever it raises into one line on stderr and an exit code.

    Args:
        work: the command; returns its exit code.
        debug: print the traceback too.
    """
    try:
        with _hearing_sigterm():
            code = work()
        sys.stdout.flush()
        return code
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except BrokenPipeError:
        return PIPE_CLOSED
    except KeyboardInterrupt as stop:
        number = signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT
        return _end(ranks.STOPPED, "stopped at once; what was saved before stays usable", 128 + number)
    except BaseException as error:
        if debug:
            traceback.print_exc(file=sys.stderr)
        return _report(error)


@contextmanager
def _hearing_sigterm() -> Iterator[None]:
    """Let SIGTERM end the work inside as Ctrl-C does, unless somebody else hears it."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def _report(error: BaseException) -> int:
    known = explain(error)
    if isinstance(known, InterruptedRunError):
        return _end(ranks.STOPPED, f"{known.what}; {known.fix}", known.exit_code)
    if known is not None:
        return _end(known.code, str(known), known.exit_code)
    log = _write_log(error)
    kind = type(error).__name__
    text = f"error[BUG-00]: {kind}: {one_line(str(error), 300)}. Fix: this is a bug in kd; please report it with {log}"
    return _end("BUG-00", text, 1)


def _end(code: str, text: str, exit_code: int) -> int:
    """Say how this process ended; of several, the one that started them speaks, or each says which one it is."""
    if ranks.is_started_by_kd():
        ranks.record(code, one_line(text, _WIDTH), exit_code)
    elif processes.rank() == 0:
        _say(f"kd: {text}")
    elif code != ranks.STOPPED:
        _say(f"kd: process {processes.rank()}: {text}")
    return exit_code


def explain(error: BaseException) -> KDError | None:
    """Return what a user can do about an error, None if it is our bug.

    >>> explain(MemoryError()).exit_code, explain(ValueError("x")) is None
    (4, True)
    """
    if isinstance(error, KDError):
        return error
    if isinstance(error, typer.TyperException):
        return _usage(error)
    if isinstance(error, typer.Abort):
        return UsageError("CLI-00", "the input ended", fix="answer, or give the value as a flag")
    seen: BaseException | None = error
    while seen is not None:
        machine = _machine(seen)
        if machine is not None:
            return machine
        seen = seen.__cause__ or seen.__context__
    return None


def _machine(error: BaseException) -> MachineError | None:
    text = str(error)
    if (isinstance(error, OSError) and error.errno == errno.ENOSPC) or "No space left on device" in text:
        return MachineError("ENV-01", "the disk is full", where=_file(error), fix="free some space, then run it again")
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in text:
        fix = "try a smaller --batch-size, --set train.micro_tokens=1024, or --set train.chunk_tokens=128"
        return MachineError("ENV-02", "out of memory", fix=fix)
    if isinstance(error, OSError) and error.errno in _MACHINE:
        reason = (error.strerror or text).lower()
        return MachineError("ENV-03", reason, where=_file(error), fix="check owner, mode and mount of the path")
    return None


def _file(error: BaseException) -> str:
    name = getattr(error, "filename", None)
    return one_line(os.fsdecode(name)) if isinstance(name, str | bytes) else ""


def _usage(error: typer.TyperException) -> UsageError:
    """Say in our form what Typer found wrong with the command line."""
    context = getattr(error, "ctx", None)
    first = next(iter(ARGUMENTS.get()), "")
    command = context.command_path if context else f"kd {first}" if first.isalpha() else "kd"
    option, message = getattr(error, "option_name", ""), error.format_message().rstrip(".")
    if type(error).__name__ == "NoSuchOption":
        options = [name for parameter in context.command.params for name in parameter.opts] if context else []
        known = {name.lstrip("-"): name for name in options if name.startswith("--")}
        known |= {
            alias: known[flag.replace("_", "-")] for alias, flag in ALIASES.items() if flag.replace("_", "-") in known
        }
        near = nearest(canonical(option.lstrip("-")), known)
        fix = f"did you mean {near}?" if near else f"{command} --help lists the flags"
        return UsageError("CLI-19", f"{command} has no such flag", where=one_line(option, 60), fix=fix)
    if type(error).__name__ == "BadOptionUsage":
        what = "takes no value" if "not take" in message else "a value is missing"
        return UsageError("CLI-20", what, where=one_line(option, 60), fix=f"see {command} --help")
    if type(error).__name__ == "MissingParameter":
        name = re.sub(r"^Missing (argument|option|parameter) ", "", message).strip("'")
        return UsageError("CLI-20", f"{one_line(name)} is missing", where=command, fix=f"see {command} --help")
    return UsageError("CLI-00", one_line(message[:1].lower() + message[1:]), where=command, fix=f"see {command} --help")


def _write_log(error: BaseException) -> str:
    """Keep the traceback in the run folder if there is one, in a temporary file otherwise."""
    text = "".join(traceback.format_exception(error))
    folder = RUN_FOLDER.get()
    try:
        if folder is not None and folder.is_dir():
            with open(
                folder / "error.log", "a", encoding="utf-8", errors="backslashreplace", opener=durable.open_handle
            ) as log:
                log.write(text)
            return one_line(str(folder / "error.log"))
        with tempfile.NamedTemporaryFile(
            "w", prefix="kd-error-", suffix=".log", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as log:
            log.write(text)
        return log.name
    except OSError:
        return "the output of --debug"


def _say(text: str) -> None:
    sys.stderr.write(one_line(text, _WIDTH) + "\n")
    sys.stderr.flush()
