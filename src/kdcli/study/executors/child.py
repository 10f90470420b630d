"""The entry point of a cell's process: ``python -m kdcli.study.executors.child PARENT distill -c ...``.

The process that starts here becomes ``kd``: it asks the system for SIGTERM when its parent ends, so
that no cell outlives a killed comparison for long, and drops ``KD_*`` variables, which would
otherwise override the cell's settings a second time.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from kdcli import distributed

_GRACE = 60.0


def arguments(config: Path | str, folder: Path | str, code: Sequence[str] = ()) -> list[str]:
    """Return the command that runs a cell and ends with this process.

    Args:
        config: file of the cell's settings.
        folder: its run folder.
        code: the flags that let it run plug-in code.
    """
    command = [*python(), "-m", "kdcli.study.executors.child", str(os.getpid())]
    return [*command, "distill", "-c", str(config), "-o", str(folder), "--quiet", *code]


def python() -> list[str]:
    """Return the interpreter; it imports from the working folder only if this process does so."""
    here = {"", str(Path.cwd())} & set(sys.path)
    return [sys.executable] if here else [sys.executable, "-P"]


def run_cell(config: str, folder: str, log: str, working_folder: str, *code: str) -> int:
    """Run a cell in a child process and wait for it; when this process is stopped, the child saves first.

    Args:
        config: file of the cell's settings.
        folder: its run folder.
        log: file for its output.
        working_folder: what relative paths are relative to.
        code: the flags that let it run plug-in code.

    Returns:
        the exit code of ``kd distill``.
    """
    with open(Path(working_folder, log), "wb") as stream:
        child = subprocess.Popen(
            arguments(config, folder, code), cwd=working_folder, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream
        )
        try:
            return child.wait()
        finally:
            if child.poll() is None:
                child.terminate()
                _wait(child)


def _wait(child: "subprocess.Popen[bytes]") -> None:
    """Wait for a child that was asked to stop; end it if it does not."""
    end = time.monotonic() + _GRACE
    while child.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    if child.poll() is None:
        child.kill()


def _become_kd(parent: int, words: list[str]) -> None:
    """Replace this process by ``kd``."""
    distributed.end_with(parent)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("KD_")}
    os.execve(sys.executable, [*python(), "-m", "kdcli", *words], environ)


if __name__ == "__main__":
    _become_kd(int(sys.argv[1]), sys.argv[2:])
