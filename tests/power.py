"""What a loss of power leaves of a command's folder: everything that was not flushed may be there, torn, or missing.

The model is that of ext4 and of SQLite's crash tests. What a file holds is certain only as far as it was flushed
itself, and an entry of a folder only once that folder was flushed; files, folders and entries do not wait for each
other. A recorder follows a command operation by operation and knows, for every file and folder, what is certain and
what the living system shows. A state is one choice between the two for every file and every entry. There are too many
to try them all, so these are tried at every moment: all or none of the entries with all, half or none of the data;
one folder, one entry or one file that differs from all others, each way.
"""

import hashlib
import os
import pickle
import resource
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faults

Entries = Mapping[str, int]
_ROOT = -1


@dataclass(frozen=True)
class Moment:
    """What is certain and what is shown, of every file and folder, before one operation.

    Args:
        label: number and name of the operation.
        certain: of each folder, by its number, its entries that no loss of power takes away.
        shown: of each folder its entries as the living system shows them.
        kept: of each file the digest of what was flushed last.
        held: of each file the digest of what it holds.
    """

    label: str
    certain: Mapping[int, Entries]
    shown: Mapping[int, Entries]
    kept: Mapping[int, str]
    held: Mapping[int, str]


class Recorder:
    """Follows the operations below a folder; to be called before and after each.

    Args:
        root: the folder.
        blobs: a folder outside of it for what files held.
    """

    def __init__(self, root: Path, blobs: Path) -> None:
        self.root, self.blobs = root, blobs
        self.moments: list[Moment] = []
        self._certain: dict[int, dict[str, int]] = {}
        self._shown: dict[int, dict[str, int]] = {}
        self._kept: dict[int, str] = {}
        self._held: dict[int, str] = {}
        self._times: dict[int, tuple[int, int]] = {}
        self._open: list[int] = []  # as long as a file is open, no other gets its number
        blobs.mkdir()
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self._nothing = self._blob(b"")
        self._scan()
        self._certain = {number: dict(entries) for number, entries in self._shown.items()}
        self._kept = dict(self._held)

    def before(self, number: int, operation: faults.Operation) -> None:
        """Write down what is certain and what is shown."""
        self._scan()
        certain = {folder: dict(entries) for folder, entries in self._certain.items()}
        shown = {folder: dict(entries) for folder, entries in self._shown.items()}
        label = f"{number:04d}-{operation.name}-{Path(operation.path).name}"
        self.moments.append(Moment(label, certain, shown, dict(self._kept), dict(self._held)))

    def after(self, number: int, operation: faults.Operation) -> None:
        """A file or folder that was flushed is certain."""
        self._scan()
        if operation.name == "fsync" and os.path.exists(operation.path):
            found = self._number(Path(operation.path))
            if found in self._shown:
                self._certain[found] = dict(self._shown[found])
            else:
                self._kept[found] = self._held[found]

    def _number(self, path: Path) -> int:
        return _ROOT if path == self.root else path.stat(follow_symlinks=False).st_ino

    def _scan(self) -> None:
        self._shown = {}
        if not self.root.is_dir():
            return
        for at, _, files in os.walk(self.root):
            folder = Path(at)
            self._shown[self._seen(folder, self._certain)] = {
                name: self._number(folder / name) for name in sorted(os.listdir(at))
            }
            for name in files:
                path = folder / name
                found = self._seen(path, self._held)
                status = path.stat()
                if self._times.get(found) != (times := (status.st_mtime_ns, status.st_size)):
                    self._times[found] = times
                    self._held[found] = self._blob(path.read_bytes())

    def _seen(self, path: Path, known: dict[int, Any]) -> int:
        number = self._number(path)
        if number not in known:
            self._open.append(os.open(path, os.O_RDONLY))
            known[number] = {} if known is self._certain else ""
            self._kept.setdefault(number, self._nothing)
        return number

    def _blob(self, raw: bytes) -> str:
        name = hashlib.sha256(raw).hexdigest()
        if not (path := self.blobs / name).exists():
            path.write_bytes(raw)
        return name


State = dict[str, str | None]
"""Path in the folder -> digest of what the file there holds, None for a folder; a digest and "/" is torn."""


def states(moment: Moment) -> Iterator[tuple[str, State]]:
    """Yield the states that a loss of power at one moment may leave, each with its name."""
    entries = {
        (folder, name)
        for folder in moment.certain.keys() | moment.shown.keys()
        for name in moment.certain.get(folder, {}).keys() | moment.shown.get(folder, {}).keys()
        if moment.certain.get(folder, {}).get(name) != moment.shown.get(folder, {}).get(name)
    }
    files = {number for number in moment.held if moment.held[number] != moment.kept[number]}

    def state(shown: Callable[[tuple[int, str]], bool], data: Callable[[int], str]) -> State:
        return dict(_tree(moment, shown, data))

    for data in ("held", "torn", "kept"):
        yield f"all entries, data {data}", state(lambda entry: True, lambda file, data=data: data)
        yield f"no entry, data {data}", state(lambda entry: False, lambda file, data=data: data)
    for folder in sorted({folder for folder, _ in entries}):
        for data in ("held", "kept"):
            yield f"only {folder}, {data}", state(lambda one, at=folder: one[0] == at, lambda file, data=data: data)
            yield f"all but {folder}, {data}", state(lambda one, at=folder: one[0] != at, lambda file, data=data: data)
    for entry in sorted(entries):
        yield f"only {entry}", state(lambda one, it=entry: one == it, lambda file: "held")
        yield f"all but {entry}", state(lambda one, it=entry: one != it, lambda file: "held")
    for file in sorted(files):
        for data in ("torn", "kept"):
            yield (
                f"all but {file} {data}",
                state(lambda one: True, lambda one, it=file, data=data: data if one == it else "held"),
            )


def _tree(
    moment: Moment, shown: Callable[[tuple[int, str]], bool], data: Callable[[int], str], folder: int = _ROOT,
    place: str = "",
) -> Iterator[tuple[str, str | None]]:  # fmt: skip
    before, now = moment.certain.get(folder, {}), moment.shown.get(folder, {})
    for name in sorted(before.keys() | now.keys()):
        number = (now if shown((folder, name)) else before).get(name)
        if number is None:
            continue
        path = f"{place}{name}"
        if number not in moment.held:
            yield path, None
            yield from _tree(moment, shown, data, number, f"{path}/")
        elif data(number) == "torn" and moment.held[number] != moment.kept[number]:
            yield path, f"{moment.held[number]}/{moment.kept[number]}"
        else:
            yield path, (moment.kept if data(number) == "kept" else moment.held)[number]


def put(state: State, root: Path, blobs: Path) -> None:
    """Make a folder look like a state."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    for name, held in state.items():
        if held is None:
            (root / name).mkdir()
        else:
            (root / name).write_bytes(_content(held, blobs))


def _content(held: str, blobs: Path) -> bytes:
    if "/" not in held:
        return (blobs / held).read_bytes()
    new, old = ((blobs / name).read_bytes() for name in held.split("/"))
    return new[: (len(old) + len(new)) // 2] if new.startswith(old) else new[: len(new) // 2]


def moments(work: faults.Work) -> list[Moment]:
    """Run a command once, in a fork; return every moment of it, and leave the blobs in ``work.beside``."""
    blobs, told = work.beside / "blobs", work.beside / "moments"
    shutil.rmtree(blobs, ignore_errors=True)
    work.reset()
    recorder: list[Recorder] = []

    def before(number: int, operation: faults.Operation) -> None:
        if not recorder:
            recorder.append(Recorder(work.root, blobs))
        recorder[0].before(number, operation)

    def after(number: int, operation: faults.Operation) -> None:
        recorder[0].after(number, operation)

    run = work.run

    def recorded() -> None:
        run()
        told.write_bytes(pickle.dumps(recorder[0].moments))

    ended = faults.Work(work.root, recorded, work.beside / "recording").attempt(before, after)
    assert ended["code"] == 0, ended["said"]
    return pickle.loads(told.read_bytes())
