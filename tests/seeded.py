"""Seeds one bug at a time into a copy of the package and runs the tests that should see it.

``python -m tests.seeded`` tries every bug of ``seeded_bugs.toml``, ``python -m tests.seeded NAME ...`` some. It prints
what the tests caught and what they missed, and ends with 1 if more than ``MISSED`` bugs pass unseen.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "kdcli"
MISSED = 2
"""How many of the bugs may pass unseen."""

_SECONDS = 900
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


def try_bug(bug: Bug) -> str:
    """Return "caught" or "missed", or what kept the tests from running."""
    with tempfile.TemporaryDirectory(prefix="seeded-") as name:
        copy = Path(name)
        shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(ROOT / "tests", copy / "tests", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        for folder in ("docs", "benchmarks", ".venv"):
            (copy / folder).symlink_to(ROOT / folder)
        (copy / "src" / "kdcli" / bug.file).write_text(bug.source(), encoding="utf-8")
        environment = os.environ | {"PYTHONPATH": str(copy / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
        line = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider", *bug.tests]
        try:
            done = subprocess.run(line, cwd=copy, env=environment, capture_output=True, text=True, timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            return "caught"  # a hang is seen by whoever waits for the tests
        if done.returncode == _FAILED:
            return "caught"
        return (
            "missed"
            if done.returncode == 0
            else f"not tested: pytest ended with {done.returncode}\n{done.stdout[-2000:]}"
        )


def main() -> int:
    """Try the bugs and print what became of each; return 1 if too many were missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.seeded", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help="bugs to try; all without")
    parser.add_argument("--jobs", type=int, default=2, help="how many at once")
    options = parser.parse_args()
    bugs = [bug for bug in read_bugs() if not options.names or bug.name in options.names]
    found = {}
    with ThreadPoolExecutor(options.jobs) as pool:
        for bug, outcome in zip(bugs, pool.map(try_bug, bugs), strict=True):
            found[bug.name] = outcome
            print(f"{outcome:8} {bug.name}: {bug.what}", flush=True)
    unseen = [name for name, outcome in found.items() if outcome != "caught"]
    print(
        f"{len(bugs) - len(unseen)} of {len(bugs)} seeded bugs caught" + "".join(f"\nunseen: {name}" for name in unseen)
    )
    return len(unseen) > MISSED


if __name__ == "__main__":
    raise SystemExit(main())
