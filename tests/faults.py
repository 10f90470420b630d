"""Faults at every operation on the disk: what a command leaves there, and whether the same command mends it.

A piece of work runs in a fork whose operations below one folder are counted. One pass keeps what lay on the disk
before each operation, and with half of what it wrote: that is what ``kill -9`` leaves, or a kill in the middle of a
write. A refusal needs a pass of its own, since the process goes on after it. From each state the work is run again,
without a fault, and must end as if nothing had happened.
"""

import builtins
import errno
import hashlib
import io
import json
import os
import re
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast, modeling_utils

from kdcli.errors import KDError
from kdcli.storage import atomic
from kdcli.teachers import cached, token_store
from kdcli.training import checkpoint

CPU = torch.device("cpu")
REFUSALS = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EFBIG)
_UNEQUAL = {"started", "updated", "seconds", "cpu_seconds", "peak_bytes", "generation_seconds", "digest", "files"}
"""Entries of a status that tell of one machine's clock and memory, or of files that do."""
_CLOCK = ("timing.jsonl", "costs.csv", "comparison.json", "report.html", "digests.json")
_RANDOM = re.compile(r"\.tmp-[0-9a-f]{16}")
_LOGS = (".lock", "error.log")


@dataclass
class Operation:
    """One operation on the disk, about to happen.

    Args:
        name: what it is.
        path: of the file or folder.
        half: for one that writes: does so half way.
    """

    name: str
    path: str
    half: Callable[[], Any] | None = None


Act = Callable[[int, Operation], None]


def _nothing(number: int, operation: Operation) -> None:
    return


class _Disk:
    """Counts the operations below a folder, and lets somebody act before and after each."""

    def __init__(self, root: Path, before: Act, after: Act) -> None:
        self.root, self.before, self.after = f"{root}{os.sep}", before, after
        self.count, self.inside = 0, False

    def meets(self, path: str) -> bool:
        return not self.inside and f"{path}{os.sep}".startswith(self.root)

    def around(self, operation: Operation, work: Callable[[], Any]) -> Any:
        self.count += 1
        number, self.inside = self.count, True  # what happens within is not counted
        try:
            self.before(number, operation)
            found = work()
            self.after(number, operation)
        finally:
            self.inside = False
        return found


def _place(what: Any, folder: int | None = None) -> str:
    if isinstance(what, int):
        return os.readlink(f"/proc/self/fd/{what}")
    path = os.fsdecode(what)
    if folder is not None and not os.path.isabs(path):
        path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
    return os.path.abspath(path)


@contextmanager
def watched(root: Path, before: Act, after: Act = _nothing) -> Iterator[_Disk]:
    """Within, both are called with the number and name of every operation below a folder."""
    disk = _Disk(root, before, after)
    undo: list[tuple[Any, str, Any]] = []

    def put(owner: Any, name: str, new: Callable[[Any], Any]) -> None:
        undo.append((owner, name, getattr(owner, name)))
        setattr(owner, name, new(getattr(owner, name)))

    def call(name: str, at: int = 0) -> Callable[[Any], Any]:
        def wrap(real: Any) -> Any:
            def work(*args: Any, **options: Any) -> Any:
                path = _place(args[at], options.get("dir_fd"))
                if not disk.meets(path):
                    return real(*args, **options)
                return disk.around(Operation(name, path), lambda: real(*args, **options))

            return work

        return wrap

    def creating(real: Any) -> Any:
        def work(path: Any, flags: int, *args: Any, **options: Any) -> int:
            if not flags & os.O_CREAT or not disk.meets(_place(path, options.get("dir_fd"))):
                return real(path, flags, *args, **options)
            return disk.around(Operation("create", _place(path)), lambda: real(path, flags, *args, **options))

        return work

    def writing(real: Any) -> Any:
        def work(handle: int, data: Any) -> int:
            path = _place(handle)
            if not disk.meets(path):
                return real(handle, data)
            half = bytes(data)[: len(data) // 2]
            return disk.around(Operation("write", path, lambda: real(handle, half)), lambda: real(handle, data))

        return work

    def opening(real: Any) -> Any:
        def work(path: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
            if isinstance(path, int) or not set(mode) & set("wax+") or not disk.meets(_place(path)):
                return real(path, mode, *args, **options)
            operation = Operation("create", _place(path))
            file = disk.around(operation, lambda: real(path, mode, *args, **options))
            close = file.close

            def closing() -> None:
                if file.closed or disk.inside:
                    close()
                    return
                disk.around(Operation("close", _place(path), lambda: (close(), _halve(path))), close)

            file.close = closing
            return file

        return work

    def writer(at: int, name: str = "") -> Callable[[Any], Any]:
        def wrap(real: Any) -> Any:
            def work(*args: Any, **options: Any) -> Any:
                target = options[name] if name in options else args[at]
                if isinstance(target, io.IOBase) or not disk.meets(path := _place(target)):
                    return real(*args, **options)

                def half() -> None:
                    there = _sizes(path)
                    real(*args, **options)
                    for one, size in _sizes(path).items():
                        if size != there.get(one):
                            _halve(one)

                return disk.around(Operation(real.__name__, path, half), lambda: real(*args, **options))

            return work

        return wrap

    for name in ("fsync", "mkdir", "rmdir", "unlink", "ftruncate"):
        put(os, name, call(name))
    for name in ("replace", "rename", "link"):
        put(os, name, call(name, 1))
    put(atomic, "_exchange", call("exchange", 1))
    put(os, "open", creating)
    put(os, "write", writing)
    put(io, "open", opening)
    put(builtins, "open", lambda real: io.open)
    for owner in (checkpoint, token_store, cached):
        put(owner, "save_file", writer(1))
    put(modeling_utils, "safe_save_file", writer(1))
    put(pq, "write_table", writer(1))
    put(PreTrainedTokenizerFast, "_save_pretrained", writer(1, "save_directory"))
    try:
        yield disk
    finally:
        for owner, name, real in reversed(undo):
            setattr(owner, name, real)


def _sizes(path: str | Path) -> dict[Path, int]:
    return {one: one.stat().st_size for one in _files(path)}


def _files(path: str | Path) -> list[Path]:
    path = Path(path)
    return [one for one in path.rglob("*") if one.is_file()] if path.is_dir() else [path] if path.is_file() else []


def _halve(path: str | Path) -> None:
    os.truncate(path, os.stat(path).st_size // 2)


def refusal(number: int, operation: Operation) -> BaseException:
    """Return what the writer at hand raises when the system refuses."""
    text = f"{os.strerror(number)} (os error {number})"
    if operation.name == "save_file":
        return SafetensorError(f"Error while serializing: I/O error: {text}")
    if operation.name == "_save_pretrained":
        return Exception(text)
    return OSError(number, os.strerror(number), operation.path)


@dataclass
class Work:
    """A command under test.

    Args:
        root: the folder it writes; nothing else is compared.
        run: the command; the same call goes on where it was stopped.
        beside: a scratch folder outside of it.
    """

    root: Path
    run: Callable[[], Any]
    beside: Path
    before: Path | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.beside.mkdir(parents=True, exist_ok=True)
        if self.root.is_dir():
            self.before = Path(shutil.copytree(self.root, self.beside / "before"))

    def reset(self, state: Path | None = None) -> None:
        """Put the folder into a state; by default, the one it was in before the command ran first."""
        shutil.rmtree(self.root, ignore_errors=True)
        if (state := state or self.before) is not None:
            shutil.copytree(state, self.root)

    def attempt(self, before: Act = _nothing, after: Act = _nothing) -> dict[str, Any]:
        """Run the command in a fork; return its exit code, what it said, and how many operations it took."""
        told = self.beside / "told.json"
        told.unlink(missing_ok=True)
        pid = os.fork()
        if not pid:
            self._child(before, after, told)
        _, status = os.waitpid(pid, 0)
        return {"code": -os.WTERMSIG(status)} if os.WIFSIGNALED(status) else json.loads(told.read_bytes())

    def _child(self, before: Act, after: Act, told: Path) -> None:
        found: dict[str, Any] = {"code": 0, "said": ""}
        with watched(self.root, before, after) as disk:
            try:
                self.run()
            except KDError as error:
                found = {"code": error.exit_code, "said": str(error)}
            except BaseException:
                found = {"code": 1, "said": traceback.format_exc()}
        told.write_text(json.dumps({**found, "operations": disk.count}))
        os._exit(0)

    def states(self, every: int = 1, first: int = 0) -> list[Path]:
        """Run the command once; return copies of the folder before operations, and of torn writes.

        The operations are those whose number leaves ``first`` when divided by ``every``.
        A torn write is kept as it is with every file that it changed cut in the middle of the change.
        """
        folder = self.beside / "states"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()

        def label(number: int, operation: Operation) -> Path:
            return folder / f"{number:04d}-{operation.name}-{Path(operation.path).name}"

        def keep(number: int, operation: Operation) -> None:
            if number % every == first:
                self.save(label(number, operation))

        def keep_torn(number: int, operation: Operation) -> None:
            if number % every != first or operation.half is None:
                return
            whole = label(number, operation)
            torn = whole.with_name(f"{whole.name}-torn")
            self.save(torn)
            for path in _files(torn):
                before = whole / path.relative_to(torn)
                start = before.stat().st_size if before.is_file() else 0
                if path.stat().st_size != start:
                    os.truncate(path, (start + path.stat().st_size) // 2)

        self.reset()
        ended = self.attempt(keep, keep_torn)
        assert ended["code"] == 0, ended["said"]
        return sorted(folder.iterdir())

    def save(self, target: Path) -> None:
        """Copy the folder as it is."""
        if self.root.is_dir():
            shutil.copytree(self.root, target, symlinks=True)
        else:
            target.mkdir()

    def content(self, *, raw: bool = False) -> dict[str, str]:
        """Return what the folder holds: names and digests of everything but clocks, locks and logs.

        Args:
            raw: as it lies there; else a sequence of a cache counts the same in whatever shard it lies, and files
                must be whole.
        """
        found: dict[str, str] = {}
        for path in _files(self.root):
            name = path.relative_to(self.root)
            if path.name not in _LOGS:
                plain = _RANDOM.sub(".tmp-", str(name))
                more = {plain: _digest(path)} if raw else _digests(path, name)
                assert not more.keys() & found.keys(), f"a second copy of {more.keys() & found.keys()}"
                found |= more
        return found


def _digest(path: Path) -> str:
    if path.name in _CLOCK:
        return ""
    raw = path.read_bytes()
    if path.name == "status.json" and raw.endswith(b"}\n"):
        raw = repr(sorted((key, value) for key, value in json.loads(raw).items() if key not in _UNEQUAL)).encode()
    return hashlib.sha256(raw).hexdigest()


def _digests(path: Path, name: Path) -> dict[str, str]:
    if name.parts[0].startswith("shard-"):
        return _sequences(path) if path.name == token_store.INDEX else {}
    return {str(name): _digest(path)}


def _sequences(index: Path) -> dict[str, str]:
    """Return sequence -> digest of its tensors, whatever shard they lie in."""
    tensors, found = load_file(index.with_name(token_store.TOKENS)), {}
    for key, (start, rows) in json.loads(index.read_bytes()).items():
        parts = [tensors[name][start : start + rows].numpy().tobytes() for name in sorted(tensors)]
        found[f"{index.parent.name if key in found else 'sequence'} {key}"] = hashlib.sha256(
            b"".join(parts)
        ).hexdigest()
    return found


def killed(number: int) -> Act:
    """End the process at an operation, as ``kill -9`` does."""

    def act(at: int, operation: Operation) -> None:
        if at == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return act


def refused(number: int) -> Act:
    """Refuse an operation, once; a write gets half way."""

    def act(at: int, operation: Operation) -> None:
        if at == number:
            if operation.half is not None:
                operation.half()
            raise refusal(REFUSALS[number % len(REFUSALS)], operation)

    return act
