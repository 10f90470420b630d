"""What durable files look like after one bit fell over, and what is made of them."""

import contextlib
import ctypes
import hashlib
import os
import pickle
import signal
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kdcli.config.schema import CacheConfig, DataConfig, EvalSettings, GenerateConfig, GenerationConfig, HardwareConfig
from kdcli.distill.generate import generate
from kdcli.distill.run import distill, read_run
from kdcli.errors import InterruptedRunError
from kdcli.evaluation.results import read_results, read_scores
from kdcli.events import Event, silent
from kdcli.report.sections import ReportData
from kdcli.report.tables import render
from kdcli.storage.run_dir import RunFolder
from kdcli.study import compare
from kdcli.study.finished import groups_of
from kdcli.study.results import read_comparison
from kdcli.study.study_dir import read_study
from kdcli.teachers.load import cache
from study import Parts

CPU = HardwareConfig(device="cpu")
_NOT_RECORDS = (".lock", "error.log")
_NEW_NAMES, _NEW_USERS = 0x00020000, 0x10000000
_BIND, _AGAIN, _READ_ONLY, _PRIVATE = 4096, 32, 1, (1 << 18) | 16384


class Workplace:
    """A study, a finished run, one that was stopped, a teacher cache and a teacher's text, all tiny."""

    def __init__(self, root: Path) -> None:
        self.root, self.parts = root, Parts(root)
        settings = EvalSettings(
            metrics=("rougeL", "perplexity"), generation=GenerationConfig(max_new_tokens=4, seeds=(1,))
        )
        common = {"evaluation": settings, "teacher_cache": None}
        self.study = root / "study"
        compared = self.parts.study("ce", "fkl", max_steps=2, save_every=1)
        compare.compare(compared.model_copy(update={"evaluation": settings, "teacher_cache": "none"}), silent)
        self.half = root / "half"
        self.settings = self.parts.run("half", max_steps=3, save_every=1).model_copy(update=common)
        with contextlib.suppress(InterruptedRunError):
            distill(self.settings, stopping_after(2))
        rows = DataConfig(train=str(self.parts.train), limit=4)
        self.cache = root / "cache"
        cache(CacheConfig(teacher=str(self.parts.teacher), data=rows, hardware=CPU, output=str(self.cache)), silent)
        self.text = root / "text"
        source = "teacher:max_new_tokens=3"
        generate(
            GenerateConfig(
                teacher=str(self.parts.teacher), source=source, data=rows, hardware=CPU, output=str(self.text)
            ),
            silent,
        )


def stopping_after(step: int) -> Callable[[Event], None]:
    """A report that sends this process SIGTERM once a step is done."""

    def report(event: Event) -> None:
        if event.kind == "progress" and event.message == "training" and event.done == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return report


def records(folder: Path) -> list[Path]:
    """Every durable file below a folder, relative to it."""
    return [
        path.relative_to(folder)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in _NOT_RECORDS and path.suffix != ".lock"
    ]


def bits(path: Path, count: int, size: int) -> list[int]:
    """So many places of a file, the same ones for every run of the tests, spread over all of it."""
    numbers = (hashlib.sha256(f"{path.as_posix()} {place}".encode()).digest() for place in range(count))
    return sorted({int.from_bytes(number[:8]) % (8 * size) for number in numbers})


def flip(path: Path, bit: int) -> None:
    """Let one bit of a file fall over."""
    raw = bytearray(path.read_bytes())
    raw[bit // 8] ^= 1 << bit % 8
    path.write_bytes(raw)


@contextlib.contextmanager
def flipped(path: Path, bit: int) -> Iterator[None]:
    """One bit of a file fallen over, and put back."""
    whole = path.read_bytes()
    flip(path, bit)
    try:
        yield
    finally:
        path.write_bytes(whole)


def told_by_study(folder: Path) -> list[Any]:
    """Everything that is computed from a study's records: its table, and what its report is drawn from."""
    comparison, groups = read_comparison(folder), groups_of(read_study(folder), folder)
    material = ReportData(comparison, tuple(groups))
    runs = [one for group in groups for one in group.runs.values()]
    told: list[Any] = [render(comparison, form) for form in ("md", "csv", "json")]
    for run, found in runs:
        assert found.folder is not None
        scores = {name: (one.value, None if one.sums is None else one.sums.tolist())
                  for name, one in read_scores(found.folder).items()}  # fmt: skip
        told += [(run.loss, run.seed, run.steps, run.seconds), material.metrics(run), found, scores]
    return told


def told_by_run(folder: Path) -> list[Any]:
    """Everything that is read of a finished run."""
    run = read_run(folder)
    return [(run.loss, run.seed, run.steps, run.tokens), *map(read_results, RunFolder(folder).evaluations().values())]


def in_a_fork(work: Callable[[], Any]) -> Any:
    """Run something in a process of its own, and return what it returns."""
    ready, given = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ready)
        with os.fdopen(given, "wb") as answer:
            try:
                answer.write(pickle.dumps((True, work())))
            except BaseException:
                answer.write(pickle.dumps((False, traceback.format_exc())))
        os._exit(0)
    os.close(given)
    with os.fdopen(ready, "rb") as answer:
        raw = answer.read()
    os.waitpid(pid, 0)
    done, found = pickle.loads(raw)  # our own child wrote it
    assert done, found
    return found


def make_read_only(folder: Path) -> bool:
    """Mount a folder read-only over itself, for this process and its children alone; False where that is refused."""
    libc = ctypes.CDLL(None, use_errno=True)
    unshare, mount = getattr(libc, "unshare", None), getattr(libc, "mount", None)
    if unshare is None or mount is None:
        return False
    if unshare(_NEW_NAMES) != 0 and unshare(_NEW_NAMES | _NEW_USERS) != 0:
        return False
    place = os.fsencode(folder)
    return (
        mount(b"none", b"/", None, _PRIVATE, None) == 0
        and mount(place, place, None, _BIND, None) == 0
        and mount(None, place, None, _BIND | _AGAIN | _READ_ONLY, None) == 0
    )
