"""``kd loop``: runs command lines in rounds, as one YAML file lists them."""

import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from kdcli.cli import switches
from kdcli.cli.launch import ReportedError
from kdcli.config.names import OUTPUT
from kdcli.config.yaml_file import Node, read_config
from kdcli.errors import InputError
from kdcli.text import one_line, typed

_EPILOG = "Example: kd loop stages.yaml --dry-run; then kd loop stages.yaml"
_KEYS = ("rounds", "first", "each", "last")
_MOST = 9999
_PREVIOUS = "{previous}"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("loop", epilog=_EPILOG, short_help="Run command lines in rounds, from one YAML file.")(loop)


def loop(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="YAML with rounds, each, and perhaps first and last.")],
    dry_run: Annotated[bool, switches.switch("--dry-run", "Show all command lines; run nothing.", OUTPUT)] = False,
    quiet: switches.Quiet = False,
    debug: switches.Debug = False,
) -> None:
    """Run command lines of kd in rounds, such as stages of rows and trainings on them.

    In FILE, rounds is their number, and each lists the command lines of one;
    first replaces it in round 1, last follows all rounds. {round}, {previous}
    and {rounds} stand for numbers.

    Every command does only what is missing, so that the same line goes on where
    a loop was stopped or killed.
    """
    from kdcli.cli.terminal import Terminal

    terminal = Terminal(False, quiet)
    steps = read_loop(file)
    if dry_run:
        for step in steps:
            terminal.show(f"{step.where}: kd {shlex.join(step.words)}")
        return
    for number, step in enumerate(steps, start=1):
        terminal.note(f"{number} of {len(steps)}, {step.where}: kd {shlex.join(step.words)}")
        code = _run(step.words)
        if code:
            _stop(code, step, file)
    terminal.show(f"{len(steps)} command lines done")


@dataclass(frozen=True)
class LoopStep:
    """One command line of a loop.

    Args:
        where: its round, in words.
        words: what stands after ``kd``.
    """

    where: str
    words: tuple[str, ...]


def read_loop(path: Path) -> list[LoopStep]:
    """Return the command lines of a loop's file, in order.

    Args:
        path: the file.

    Raises:
        InputError: LOOP-01, naming the line that cannot be used.
        MachineError: it may not be read.
    """
    found = read_config(path)
    for key, node in found.items():
        if key not in _KEYS:
            raise _refused(path, node, f'unknown key "{one_line(key, 40)}"', f"use {', '.join(_KEYS)}")
    if "each" not in found:
        raise InputError("LOOP-01", "it lists no commands", where=one_line(str(path)), fix="write each: and a list")
    rounds = found.get("rounds", Node(1, 1))
    count = rounds.value
    if type(count) is not int or not 1 <= count <= _MOST:
        raise _refused(path, rounds, f"rounds must be a whole number from 1 to {_MOST}", "write rounds: 3")
    steps = []
    for number in range(1, count + 1):
        key = "first" if number == 1 and "first" in found else "each"
        steps += [_step(path, node, number, count, key) for node in _lines(path, found[key])]
    return steps + [_step(path, node, count, count, "last") for node in _lines(path, found.get("last"))]


def _lines(path: Path, node: Node | None) -> list[Node]:
    if node is None:
        return []
    listed = isinstance(node.value, list)
    wrong = node if not listed else next((one for one in node.value if not isinstance(one.value, str)), None)
    if wrong is not None:
        raise _refused(path, wrong, "a list of command lines is needed", "begin each with a hyphen: - kd distill ...")
    return node.value


def _step(path: Path, node: Node, number: int, rounds: int, key: str) -> LoopStep:
    text = node.value
    if _PREVIOUS in text and number == 1:
        what = f"{_PREVIOUS} stands for no number in round 1"
        raise _refused(path, node, what, "list the commands of round 1 under first:")
    for name, value in (("{round}", number), (_PREVIOUS, number - 1), ("{rounds}", rounds)):
        text = text.replace(name, str(value))
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise _refused(path, node, f"it is no command line: {error}", "close every quotation mark") from None
    if words[:1] != ["kd"] or len(words) < 2 or words[1] in ("loop", "kd"):
        raise _refused(path, node, f'"{one_line(text, 60)}" is no command of kd', "begin with kd, as in kd distill ...")
    where = "after all rounds" if key == "last" else f"round {number} of {rounds}"
    return LoopStep(where, tuple(words[1:]))


def _refused(path: Path, node: Node, what: str, fix: str) -> InputError:
    return InputError("LOOP-01", what, where=f"{one_line(str(path))} line {node.line}", fix=fix)


def _run(words: tuple[str, ...]) -> int:
    """Run one command in a process of its own; return its exit code, or that of a stop which it did not notice."""
    with subprocess.Popen([sys.executable, "-m", "kdcli", *words]) as process, _passing_on(process) as stops:
        code = process.wait()
        return 128 + stops[0] if stops and not code else code


@contextmanager
def _passing_on(process: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Wait through Ctrl-C, which a terminal sends to the process too, and pass SIGTERM on; yield the signals."""
    stops: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        stops.append(number)
        if number == signal.SIGTERM:
            process.send_signal(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stops
    finally:
        for number, action in before.items():
            signal.signal(number, action)


def _stop(code: int, step: LoopStep, file: Path) -> None:
    """End with a command's exit code, saying where the loop stands and how it goes on."""
    again = f"kd loop {typed(file)}"
    ended = code if code > 0 else 128 - code
    text = f"stopped in {step.where}, at: kd {one_line(shlex.join(step.words), 300)}"
    cause = "" if ended in (130, 143) else f" (exit code {ended})"
    raise ReportedError(f"{text}{cause}; go on with: {again}", ended)
