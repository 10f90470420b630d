"""Prints errors: one line, and an exit code that scripts can rely on."""

import contextvars
import json
import re
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import typer

from kdcli import distributed
from kdcli.cli import launch
from kdcli.cli.terminal import HAS_RESULT, SCHEMA_VERSION
from kdcli.config.names import ALIASES, OTHER_MEANINGS, canonical, nearest
from kdcli.errors import ERROR_LINE, InterruptedRunError, KDError, NoMemoryError, UsageError, explained
from kdcli.registry import plugins
from kdcli.storage import atomic
from kdcli.text import one_line

RUN_FOLDER: contextvars.ContextVar[Path | None] = contextvars.ContextVar("run folder", default=None)
"""Where the command at hand keeps its log, once it is known."""

ARGUMENTS: contextvars.ContextVar[tuple[str, ...]] = contextvars.ContextVar("arguments", default=())
"""What stands after ``kd`` on the command line at hand."""

_LESS_TRAINING = "try a smaller --batch-size, --set train.micro_tokens=1024, or --set train.chunk_tokens=128"
_LESS = {
    "distill": _LESS_TRAINING,
    "compare": _LESS_TRAINING,
    "federate": _LESS_TRAINING,
    "eval": "try a smaller --max-length, or --set evaluation.generation.batch_tokens=1024",
    "cache": "try a smaller --max-length",
    "generate": "try a smaller --max-length",
}
"""Command -> what takes less memory."""
_WIDTH = 4000

PIPE_CLOSED = 141
"""Exit code when the reader of our output has gone: 128 + SIGPIPE."""


class Terminated(KeyboardInterrupt):
    """SIGTERM outside a training; a training handles it itself and saves first."""


def run_guarded(work: Callable[[], int], *, debug: bool) -> int:
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
    except BaseException as error:
        return _ended(error, debug=debug)


def _ended(error: BaseException, *, debug: bool) -> int:
    """Report how a command failed; libraries may have replaced the cause by another error."""
    causes = [error, error.__cause__, error.__context__]
    if any(isinstance(cause, BrokenPipeError) for cause in causes) and not isinstance(error, KDError):
        return PIPE_CLOSED
    stops = [cause for cause in causes if isinstance(cause, KeyboardInterrupt)]
    if stops and not isinstance(error, KDError):
        number = signal.SIGTERM if isinstance(stops[0], Terminated) else signal.SIGINT
        return _end(launch.STOPPED, "stopped at once; what was saved before stays usable", 128 + number)
    if isinstance(error, SystemExit) and plugins.blamed(error) is None:
        return error.code if isinstance(error.code, int) else 1
    if debug:
        _say_whole(error)
    return _report(error)


@contextmanager
def _hearing_sigterm() -> Iterator[None]:
    """Let SIGTERM end the work inside as Ctrl-C does, unless it has a handler already."""
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
        _print_json(known.code, known.what, known.where, known.fix, known.exit_code)
        return _end(launch.STOPPED, f"{known.what}; {known.fix}", known.exit_code)
    if known is not None:
        _print_json(known.code, known.what, known.where, known.fix, known.exit_code, known.also)
        return _end(known.code, str(known), known.exit_code, *map(str, known.also))
    log = _write_log(error)
    kind = type(error).__name__
    text = f"error[BUG-00]: {kind}: {one_line(str(error), 300)}. Fix: this is a bug in kd; please report it with {log}"
    _print_json("BUG-00", f"{kind}: {one_line(str(error), 300)}", "", f"please report it with {log}", 1)
    return _end("BUG-00", text, 1)


def _print_json(code: str, what: str, where: str, fix: str, exit_code: int, also: Sequence[KDError] = ()) -> None:
    """Print an error and those found with it on stdout, too, for --json; after a result only on stderr."""
    if "--json" not in ARGUMENTS.get() or HAS_RESULT.get() or launch.is_started_by_kd():
        return
    error: dict[str, Any] = {"code": code, "what": what, "where": where, "fix": fix, "exit_code": exit_code}
    if also:
        error["also"] = [{name: getattr(one, name) for name in error} for one in also]
    with suppress(OSError, KDError):
        sys.stdout.write(json.dumps({"schema_version": SCHEMA_VERSION, "kind": "error", "error": error}) + "\n")
        sys.stdout.flush()


def _end(code: str, text: str, exit_code: int, *also: str) -> int:
    """Report how this process ended, one line a mistake; of several, the launcher reports, or each names its rank."""
    try:
        rank = distributed.rank()
    except UsageError:
        rank = 0
    if launch.is_started_by_kd():
        launch.record(code, one_line(text, _WIDTH), exit_code, [one_line(other, _WIDTH) for other in also])
    elif rank == 0 or code != launch.STOPPED:
        who = f"process {rank}: " if rank else ""
        for line in (text, *also):
            _say(f"{ERROR_LINE}{who}{line}")
    return exit_code


def explain(error: BaseException) -> KDError | None:
    """Return what a user can do about an error, None if it is our bug.

    >>> explain(MemoryError()).exit_code, explain(ValueError("x")) is None
    (4, True)
    """
    if isinstance(error, typer.TyperException):
        return _usage(error)
    if isinstance(error, typer.Abort):
        return UsageError("CLI-00", "the input ended", fix="answer, or give the value as a flag")
    known = explained(error) or plugins.blamed(error)
    if isinstance(known, NoMemoryError):
        return NoMemoryError(known.code, known.what, where=known.where, fix=_LESS.get(_command(), known.fix))
    return known


def _command() -> str:
    return next(iter(ARGUMENTS.get()), "")


def _usage(error: typer.TyperException) -> UsageError:
    """Return the usage error for what Typer found wrong with the command line."""
    context = getattr(error, "ctx", None)
    first = _command()
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
        fix = OTHER_MEANINGS.get(option.lstrip("-").replace("-", "_"), fix)
        return UsageError("CLI-19", f"{command} has no such flag", where=one_line(option, 60), fix=fix)
    if type(error).__name__ == "BadOptionUsage":
        what = "takes no value" if "not take" in message else "a value is missing"  # its parser tells no more
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
                folder / "error.log", "a", encoding="utf-8", errors="backslashreplace", opener=atomic.open_handle
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
    """Write a line to stderr; if that fails, the exit code remains."""
    with suppress(OSError):
        sys.stderr.write(one_line(text, _WIDTH) + "\n")
        sys.stderr.flush()


def _say_whole(error: BaseException) -> None:
    with suppress(OSError):
        traceback.print_exception(error, file=sys.stderr)
