"""Trains, compares and caches for a long time, with kills, two writers and a full disk: ``python -m tests.soak``.

First one long training is watched: memory, open files and threads must not grow with its steps. Then rounds follow
until the time is over. A round kills a comparison and a teacher cache again and again, starts a comparison twice at
once, and lets a disk run full under one; each time the same command must end with the bytes of an undisturbed one. At
the end nothing may be left behind: no process, no temporary file, no open file. It ends with 1 if anything was wrong.
"""

import argparse
import ctypes
import json
import os
import random
import resource
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from scipy.stats import theilslopes

sys.path.insert(0, str(Path(__file__).parent))  # so that ``python -m tests.soak`` finds its neighbours

import study
from damage import in_a_fork
from kdcli.config.schema import CacheConfig, DataConfig, DistillConfig, HardwareConfig
from kdcli.distill.run import distill
from kdcli.errors import KDError
from kdcli.events import Event, silent
from kdcli.storage.digests import write_digests
from kdcli.study import results
from kdcli.study.compare import compare
from kdcli.teachers import cache_build
from kdcli.teachers.load import cache
from killing import forked, killed_after

STEPS, WARM_UP, EVERY = 5000, 1000, 20
KIB_PER_STEP = 2.0
"""The most that a training's memory may grow."""
TABLES = ("table.md", "table.json", "table.csv", "table.tex", "results.parquet", "samples.parquet")
FULL = 400 * 2**10
"""Bytes of the disk that runs full: the models and rows of a comparison lie elsewhere."""
_NEW_NAMES, _NEW_USERS, _AGAIN = 0x00020000, 0x10000000, 32
_PRIVATE = (1 << 18) | 16384


@dataclass(frozen=True)
class Growth:
    """What a long training held.

    Args:
        slope: KiB of memory per step, by the median of all pairs' slopes (Theil and Sen).
        files: open files at the first and at the last sample.
        threads: threads, likewise.
        names: entries of the run folder at the end.
    """

    slope: float
    files: tuple[int, int]
    threads: tuple[int, int]
    names: tuple[str, ...]

    def complaints(self) -> list[str]:
        """Say what grew."""
        found = [f"memory grows by {self.slope:.2f} KiB a step"] if self.slope > KIB_PER_STEP else []
        found += [f"open files: {self.files}"] if self.files[1] > self.files[0] else []
        return found + ([f"threads: {self.threads}"] if self.threads[1] > self.threads[0] else [])


@dataclass
class Samples:
    """Listens to a training and measures this process every few steps."""

    warm_up: int
    every: int
    steps: list[int] = field(default_factory=list)
    kib: list[float] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        if event.kind != "progress" or event.message != "training" or event.done is None:
            return
        if event.done >= self.warm_up and event.done % self.every == 0:
            self.steps.append(int(event.done))
            self.kib.append(_resident() / 1024)
            self.files.append(len(os.listdir("/proc/self/fd")))
            self.threads.append(threading.active_count())

    def slope(self) -> float:
        found: Any = theilslopes(self.kib, self.steps)
        return float(found.slope)


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def grown(config: DistillConfig, warm_up: int = WARM_UP, report: Callable[[Event], None] = silent) -> Growth:
    """Train in a fork of this process, and measure it there.

    Args:
        config: of the training.
        warm_up: steps that are not looked at.
        report: gets every event, too.
    """

    def work() -> Growth:
        seen = Samples(warm_up, EVERY)

        def both(event: Event) -> None:
            seen(event)
            report(event)

        distill(config, both)
        names = tuple(sorted(path.name for path in Path(str(config.output)).iterdir()))
        return Growth(seen.slope(), (seen.files[0], seen.files[-1]), (seen.threads[0], seen.threads[-1]), names)

    return in_a_fork(work)


class Soak:
    """The rounds: each is drawn from a seed, and says what was wrong."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.draw = root, random.Random(seed)
        self.parts = study.Parts(root)
        self.counts = {"kills": 0, "second writers": 0, "full disks": 0, "full disks that refused": 0}
        results.publish = lambda folder, *rest: write_digests(folder)  # pictures are drawn by other tests
        cache_build._SHARD_BYTES, cache_build._MICRO_TOKENS = 600, 64
        self.whole = self._tables(self._compare("whole"))
        self.cached = self._cache("whole-cache")

    def round(self) -> list[str]:
        """Do everything once; return what was wrong."""
        return [*self.killed_comparison(), *self.killed_cache(), *self.two_writers(), *self.full_disk()]

    def killed_comparison(self, kills: int = 6) -> list[str]:
        """Kill a comparison at moments of its progress, then let it end."""
        return self._killed("killed", lambda: self._compare("killed"), kills, self._tables, self.whole)

    def killed_cache(self, kills: int = 4) -> list[str]:
        """Kill a teacher cache at moments of its progress, then let it end."""
        return self._killed("killed-cache", lambda: self._cache("killed-cache"), kills, contents, self.cached)

    def _killed(
        self, name: str, work: Callable[[], Any], kills: int, read: Callable[[Path], Any], wanted: Any
    ) -> list[str]:
        folder = self.root / name
        for _ in range(kills):
            self.counts["kills"] += killed_after(forked(work), folder, self.draw.randint(1, 9))
        _, status = os.waitpid(forked(work), 0)
        return self._judged(name, [] if status == 0 else [f"{name}: ended with {status}"], read(folder) == wanted)

    def two_writers(self) -> list[str]:
        """Start a comparison twice at once: one does it, the other is refused, or finds it done."""
        codes = [os.waitpid(one, 0)[1] for one in [forked(self._coded, "twice") for _ in range(2)]]
        ended = sorted(os.waitstatus_to_exitcode(code) for code in codes)
        self.counts["second writers"] += ended == [0, 5]
        wrong = [] if ended in ([0, 5], [0, 0]) else [f"two writers ended with {ended}"]
        return self._judged("twice", wrong, self._tables(self.root / "twice") == self.whole)

    def full_disk(self) -> list[str]:
        """Let the disk run full under a comparison, then make it larger."""
        folder = self.root / "full"
        folder.mkdir()
        size = self.draw.randrange(FULL // 8, FULL)

        def work() -> tuple[int, int, bool] | None:
            if not _mount(folder, size):
                return None
            first = self._code("full/study")
            _mount(folder, 64 * FULL, again=True)
            return first, self._code("full/study"), self._tables(folder / "study") == self.whole

        found = in_a_fork(work)
        if found is None:
            return self._judged("full", [], True)
        first, then, equal = found
        self.counts["full disks"] += 1
        self.counts["full disks that refused"] += first == 4
        wrong = [] if first in (0, 4) and then == 0 else [f"a disk of {size} bytes: ended with {first}, then {then}"]
        return self._judged("full", wrong, equal)

    def _judged(self, name: str, wrong: list[str], equal: bool) -> list[str]:
        """Look for what is left behind, then remove the folder."""
        folder = self.root / name
        left = [path.name for path in folder.rglob("*") if path.name.startswith((".tmp-", ".del-"))]
        shutil.rmtree(folder)
        wrong = wrong if equal else [*wrong, f"{name}: other bytes than undisturbed"]
        return [*wrong, *([f"{name}: left behind {left}"] if left else [])]

    def _compare(self, name: str) -> Path:
        settings = self.parts.study("fkl", "akl", seeds=(0, 1), name=name)
        compare(settings, silent, repeat="kd compare")
        return self.root / name

    def _code(self, name: str) -> int:
        try:
            self._compare(name)
        except KDError as error:
            return error.exit_code
        return 0

    def _coded(self, name: str) -> None:
        os._exit(self._code(name))

    def _tables(self, folder: Path) -> dict[str, bytes]:
        return {name: (folder / name).read_bytes() for name in TABLES}

    def _cache(self, name: str) -> dict[str, bytes]:
        rows = DataConfig(train=str(self.parts.train))
        hardware = HardwareConfig(device="cpu")
        folder = self.root / name
        cache(CacheConfig(teacher=str(self.parts.teacher), data=rows, hardware=hardware, output=str(folder)), silent)
        return contents(folder)


def contents(folder: Path) -> dict[str, bytes]:
    """Return the tensors of a folder; records beside them tell of a clock."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}


def _mount(folder: Path, size: int, *, again: bool = False) -> bool:
    """Mount a disk in memory, in a name space of this process alone; False where the system does not allow it."""
    libc = ctypes.CDLL(None, use_errno=True)
    unshare, mount = getattr(libc, "unshare", None), getattr(libc, "mount", None)
    if unshare is None or mount is None:
        return False
    if not again and unshare(_NEW_NAMES) != 0 and unshare(_NEW_NAMES | _NEW_USERS) != 0:
        return False
    if not again and mount(b"none", b"/", None, _PRIVATE, None) != 0:
        return False
    options = f"size={size}".encode()
    return mount(b"tmpfs", os.fsencode(folder), b"tmpfs", _AGAIN if again else 0, options) == 0


def left_behind(before: dict[str, Any]) -> list[str]:
    """Say what this process and the system hold more than before."""
    now = held()
    return [f"{name}: {before[name]} before, {now[name]} now" for name in now if now[name] != before[name]]


def held() -> dict[str, Any]:
    """Return what must be the same before and after."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    shared = Path("/dev/shm")
    return {
        "processes": len(children.read_text().split()) if children.is_file() else 0,
        "open files": len(os.listdir("/proc/self/fd")),
        "temporary files": sorted(path.name for path in Path(tempfile.gettempdir()).iterdir()),
        "shared memory": len(list(shared.iterdir())) if shared.is_dir() else 0,
    }


def rounds(soak: Soak, until: float) -> Iterator[list[str]]:
    """Yield what is wrong with each round, at least one."""
    yield soak.round()
    while time.monotonic() < until:
        yield soak.round()


def main() -> int:
    """Soak for so many minutes; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--steps", type=int, default=STEPS, help="of the training that is watched")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    until = time.monotonic() + 60 * asked.minutes
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        (Path(folder) / "tmp").mkdir()
        os.environ["TMPDIR"] = tempfile.tempdir = str(Path(folder, "tmp"))  # other processes use the common one
        soak = Soak(Path(folder), asked.seed)
        config = soak.parts.run("long", max_steps=asked.steps, save_every=500, keep=1)
        config = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"metrics": ()})})
        growth = grown(config)
        shutil.rmtree(Path(folder, "long"))
        wrong, memory = growth.complaints(), f"{growth.slope:+.3f} KiB a step"
        say(f"{asked.steps} steps: {memory}, {growth.files[1]} open files, {growth.threads[1]} threads")
        before, sizes, number = held(), [], 0
        for number, found in enumerate(rounds(soak, until), 1):
            wrong += found
            sizes.append(_resident() / 2**20)
            told = ", ".join(f"{count} {name}" for name, count in soak.counts.items())
            say(f"round {number}: {told}; {found or 'ok'}")
        wrong += left_behind(before)
        later = statistics.median(sizes[len(sizes) // 2 :]) - statistics.median(sizes[: len(sizes) // 2 or 1])
        summary = {"rounds": number, **soak.counts, "kib_per_step": growth.slope, "mib_over_rounds": later}
        say(json.dumps({**summary, "wrong": wrong}))
    return 1 if wrong else 0


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
