"""Seeds one bug at a time into a copy of the package and runs the tests that should see it.

``python -m tests.seeded`` tries every bug of ``seeded_bugs.toml``, ``python -m tests.seeded NAME ...`` some. It prints
what the tests caught and what they missed, and ends with 1 if more than ``MISSED`` bugs pass unseen.
"""

import argparse
import importlib
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
import tomllib
import traceback
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "kdcli"
MISSED = 2
"""How many of the bugs may pass unseen."""

_SECONDS = 900
_ARGUMENTS = ("-x", "-q", "-n", "0", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning")
_FAILED = 1
"""How pytest ends where a test failed; other codes say that nothing was tested."""


@dataclass(frozen=True)
class Bug:
    """One change of the source text that some test must see.

    Args:
        name: what it is called on the command line.
        what: what is wrong, in one sentence.
        file: the module, below the package.
        old: the text that is replaced; it occurs once.
        new: what stands there instead.
        tests: files and folders of tests that should see it.
    """

    name: str
    what: str
    file: str
    old: str
    new: str
    tests: Sequence[str]

    def source(self) -> str:
        """Return the module with the bug.

        Raises:
            ValueError: the text to be replaced does not occur once.
        """
        text = (PACKAGE / self.file).read_text(encoding="utf-8")
        if text.count(self.old) != 1:
            raise ValueError(f"expected the old text of {self.name} once in {self.file}, found {text.count(self.old)}")
        return text.replace(self.old, self.new)


def read_bugs() -> list[Bug]:
    """Return all bugs, in the order of their file."""
    found = tomllib.loads(Path(__file__).with_name("seeded_bugs.toml").read_text(encoding="utf-8"))
    return [Bug(**entry) for entry in found["bug"]]


def try_bug(bug: Bug, *, without: bool = False) -> str:
    """Return "caught" or "missed", or what kept the tests from running.

    Args:
        bug: the bug.
        without: leave the package as it is: then nothing may be caught.
    """
    with tempfile.TemporaryDirectory(prefix="seeded-") as name:
        copy = Path(name)
        for folder in ("src", "tests"):
            shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        for folder in ("docs", "benchmarks", ".venv"):
            (copy / folder).symlink_to(ROOT / folder)
        if not without:
            (copy / "src" / "kdcli" / bug.file).write_text(bug.source(), encoding="utf-8")
        process = os.fork()
        if not process:
            _run_tests(copy, bug.tests)
        ended = _wait(process)
        if ended in (_FAILED, None):  # a hang is seen by whoever waits for the tests
            return "caught"
        return (
            "missed" if ended == 0 else f"not tested: pytest ended with {ended}\n{(copy / 'log').read_text()[-2000:]}"
        )


def _run_tests(copy: Path, tests: Sequence[str]) -> NoReturn:
    """Run tests in this process, which was forked from one that has loaded the libraries and nothing of the package."""
    with (copy / "log").open("wb") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.setsid()
    os.chdir(copy)
    os.environ |= {"PYTHONPATH": str(copy / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = True
    sys.path[:] = [str(copy / "src"), *(one for one in sys.path if Path(one or ".").resolve() != ROOT)]
    code = 3
    try:
        code = int(pytest.main([*_ARGUMENTS, *tests]))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(code)


def _wait(process: int) -> int | None:
    """Return how a process ended; None if it took too long, and was killed with all that it started."""
    until = time.monotonic() + _SECONDS
    while time.monotonic() < until:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.1)
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return None


def _load() -> None:
    """Load what all tests need, once for all of them; the package itself comes from the copies."""
    for name in ("torch", "transformers", "scipy.stats", "pandas", "datasets", "accelerate", "hypothesis"):
        importlib.import_module(name)


def main() -> int:
    """Try the bugs and print what became of each; return 1 if too many were missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.seeded", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help="bugs to try; all without")
    parser.add_argument("--without", action="store_true", help="run the tests without the bugs: nothing may be caught")
    parser.add_argument("--jobs", type=int, default=2, help="how many at once")
    options = parser.parse_args()
    bugs = [bug for bug in read_bugs() if not options.names or bug.name in options.names]
    found = {}
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("fork"), initializer=_load) as pool:
        for bug, outcome in zip(bugs, pool.map(partial(try_bug, without=options.without), bugs), strict=True):
            found[bug.name] = outcome
            print(f"{outcome:8} {bug.name}: {bug.what}", flush=True)
    if options.without:
        return int(set(found.values()) != {"missed"})
    unseen = [name for name, outcome in found.items() if outcome != "caught"]
    print(
        f"{len(bugs) - len(unseen)} of {len(bugs)} seeded bugs caught" + "".join(f"\nunseen: {name}" for name in unseen)
    )
    return len(unseen) > MISSED


if __name__ == "__main__":
    raise SystemExit(main())
