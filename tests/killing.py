"""Kills a comparison again and again at observed progress: ``python killing.py FOLDER KILLS SEED``.

Everything is imported once; each attempt is a fork, so that twenty kills take seconds.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

import study
from kdcli.events import silent
from kdcli.study import results as tabulate
from kdcli.study.compare import compare


def parts(root: Path) -> study.Parts:
    """The models and rows that are there already."""
    made = study.Parts.__new__(study.Parts)
    made.root = root
    made.teacher, made.student = root / "teacher", root / "student"
    made.train, made.test = root / "train.jsonl", root / "test.jsonl"
    return made


def forked(work: Callable[..., object], *arguments: object) -> int:
    """Run something in a fork of this process; return its process id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work(*arguments)
    except BaseException as error:
        sys.stderr.write(repr(error))
        os._exit(1)
    os._exit(0)


def killed_when(pid: int, reached: Callable[[], bool]) -> bool:
    """Kill a process as soon as something is reached; False if it ended before."""
    while not os.waitpid(pid, os.WNOHANG)[0]:
        if reached():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return True
        time.sleep(0.0005)
    return False


def attempt(root: Path) -> int:
    """Fork a comparison; return its process id."""
    settings = parts(root).study("fkl", "akl", seeds=(0, 1), name="killed")
    return forked(lambda: compare(settings, silent, repeat="kd compare"))


def changes(folder: Path) -> int:
    """A number that grows with everything written."""
    total = 0
    for at, folders, files in os.walk(folder):
        total += len(folders) + len(files)
        if "metrics.jsonl" in files:
            total += Path(at, "metrics.jsonl").read_bytes().count(b"\n")
    return total


def finished(folder: Path) -> dict[str, int]:
    """Modification times of every file of cells that are trained, measured, and have their scores on the card."""
    return {
        str(path): path.stat().st_mtime_ns
        for results in folder.glob("cells/*/eval/*/results.json")
        if (card := results.parents[2] / "model" / "README.md").is_file() and "## Scores" in card.read_text("utf-8")
        for path in results.parents[2].rglob("*")
        if path.is_file()
    }


def killed_after(pid: int, folder: Path, wanted: int) -> bool:
    """Kill a process after so many observed changes; False if it ended before."""
    seen, last = 0, changes(folder)

    def reached() -> bool:
        nonlocal seen, last
        now = changes(folder)
        seen, last = seen + (now != last), now
        return seen >= wanted

    return killed_when(pid, reached)


def main() -> None:
    """Kill so many times, then let it end; print what was seen."""
    root, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    tabulate.publish = lambda folder, *rest: None  # pictures are drawn by other tests
    draw, folder = random.Random(seed), root / "killed"
    done, restarts, touched = 0, 0, []
    while done < kills:
        before = finished(folder)
        if killed_after(attempt(root), folder, draw.randint(1, 9)):
            done += 1
            after = finished(folder)
        else:  # it ended: forget one cell, and go on
            restarts += 1
            after = finished(folder)
            shutil.rmtree(sorted(folder.glob("cells/*"))[restarts % 4])
        touched += [path for path in before if after.get(path) != before[path]]
    before = finished(folder)
    _, status = os.waitpid(attempt(root), 0)
    after = finished(folder)
    touched += [path for path in before if after.get(path) != before[path]]
    seen = {"kills": done, "status": status, "touched": touched, "restarts": restarts}
    sys.stdout.write(json.dumps(seen) + "\n")


if __name__ == "__main__":
    main()
