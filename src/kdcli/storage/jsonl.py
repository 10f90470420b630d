"""Append-only stores of JSON objects, one a line with a checksum of its own: what a killed process goes on from."""

import hashlib
import json
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import suppress
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeAlias

from kdcli.storage import atomic, stored

Entry: TypeAlias = dict[str, Any]


def line_of(entry: Mapping[str, Any], *, ascii_only: bool = True) -> bytes:
    r"""Return the line of an entry, its checksum last.

    >>> line_of({"key": "a", "n": 1})
    b'{"key": "a", "n": 1, "check": "f3ed54dc"}\n'
    """
    return (json.dumps({**entry, "check": _checksum(entry)}, ensure_ascii=ascii_only) + "\n").encode()


def read_lines(path: Path, start: int = 0, *, unchecked: bool = False) -> Iterator[tuple[int, Entry]]:
    """Yield offset in bytes and entry, without its checksum, of each line that is whole and undamaged.

    Args:
        path: the file; one that is not there has no lines.
        start: offset of the first line to read.
        unchecked: whether a line without a checksum counts, as older files have it.

    Raises:
        MachineError: it may not be read.
    """
    try:
        with path.open("rb") as file:
            file.seek(start)
            for raw in file:
                if (entry := _parse(raw, unchecked)) is not None:
                    yield start, entry
                start += len(raw)
    except FileNotFoundError:
        return
    except OSError as error:
        raise atomic.disk_error(error, path) from error


class JsonlStore:
    """An append-only file of JSON objects, found again by key; only offsets are held in memory.

    A damaged line counts as absent, a half written last line is cut off before the next is added, and of two lines
    of one key the later counts. Several processes may append: each finds its own lines and those that were there
    when it opened the file.

    Args:
        path: the file; made when the first entry is added, in a folder that is there.
        key: of an entry; raises KeyError or TypeError for one that counts as absent.
        seconds: between flushes to disk; 0 flushes, and closes the file, after every addition.
        unchecked: whether a line without a checksum counts.
        ascii_only: whether other characters are escaped.
    """

    def __init__(
        self, path: Path, key: Callable[[Entry], Hashable] = itemgetter("key"), *,
        seconds: float = 0.0, unchecked: bool = False, ascii_only: bool = True,
    ) -> None:  # fmt: skip
        self.path, self._key, self._seconds = path, key, seconds
        self._unchecked, self._ascii_only = unchecked, ascii_only
        self._file: atomic.AppendOnlyFile | None = None
        self._flushed = time.monotonic()
        self._starts: dict[Hashable, int] = {}
        for start, entry in read_lines(path, unchecked=unchecked):
            with suppress(KeyError, TypeError):
                self._starts[key(entry)] = start

    def __len__(self) -> int:
        return len(self._starts)

    def keys(self) -> set[Hashable]:
        """Return the keys of all entries."""
        return set(self._starts)

    def find(self, key: Hashable) -> Entry | None:
        """Return the entry of a key without its checksum, None if there is none."""
        if key in self._starts:
            with suppress(KeyError, TypeError):
                for _, entry in read_lines(self.path, self._starts[key], unchecked=self._unchecked):
                    return entry if self._key(entry) == key else None
        return None

    def add(self, *entries: Entry) -> None:
        """Append entries in one write, and flush them if it is time.

        Raises:
            IntegrityError: the file is a link.
            MachineError: the disk is full or may not be written.
        """
        lines = [line_of(entry, ascii_only=self._ascii_only) for entry in entries]
        self._file = self._file or atomic.AppendOnlyFile(self.path)
        try:
            start = self._file.add(b"".join(lines))
            if time.monotonic() - self._flushed > self._seconds > 0:
                self._file.settle()
                self._flushed = time.monotonic()
        finally:
            if not self._seconds:
                self.close()
        for entry, line in zip(entries, lines, strict=True):
            self._starts[self._key(entry)] = start
            start += len(line)

    def close(self) -> None:
        """Flush and close the file."""
        file, self._file = self._file, None
        if file is not None:
            file.close()


class RotatingStore:
    """Several stores, newest last: old ones are removed once nothing needs them.

    Args:
        folder: where the files lie; made when the first entry is added, two levels below a folder that is there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._parts = {int(path.stem): JsonlStore(path) for path in sorted(folder.glob("????????.jsonl"))}
        if not self._parts:
            self._begin(0)

    def __len__(self) -> int:
        return sum(map(len, self._parts.values()))

    def find(self, key: Hashable) -> Entry | None:
        """Return the entry of a key without its checksum, None if there is none."""
        return next((entry for part in self._parts.values() if (entry := part.find(key)) is not None), None)

    def add(self, *entries: Entry) -> None:
        """Append entries to the newest file, and flush them to disk once."""
        atomic.make_inside(self._folder.parents[1], self._folder.parent.name, self._folder.name)
        self._parts[max(self._parts)].add(*entries)

    def rotate(self, keep: int) -> None:
        """Begin a new file, and remove all before it but the newest ``keep``."""
        self._begin(max(self._parts) + 1)
        for number in sorted(self._parts)[: -(keep + 1)]:
            atomic.remove_file(self._parts.pop(number).path)

    def _begin(self, number: int) -> None:
        self._parts[number] = JsonlStore(self._folder / f"{number:08d}.jsonl")


def _parse(raw: bytes, unchecked: bool) -> Entry | None:
    """Return the entry of a whole line without its checksum; None if it is damaged or half written."""
    try:
        entry = stored.parse(raw) if raw.endswith(b"\n") else None
    except ValueError:
        return None
    if not isinstance(entry, dict):
        return None
    check = entry.pop("check", None)
    return entry if check == _checksum(entry) or (unchecked and check is None) else None


def _checksum(entry: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()[:8]
