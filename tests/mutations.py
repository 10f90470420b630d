"""Spoils files as accidents and strangers would, and runs commands on them in a process of bounded memory and time."""

import copy
import json
import os
import pickle
import random
import resource
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcli.storage import atomic, forked
from shell import kd

MEMORY = 2 * 2**30
"""Bytes a command may take beyond what the tests hold already."""
SECONDS = 60
DOCUMENTED = frozenset({0, 2, 3, 4, 5, 6, 7, 8})

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**70, -(2**70), 0.5, 1e308, float("nan"), float("inf"), "", "x", "0",
    "1e-4", "\x00", "\ud800", "\u202e", "../../etc/passwd", "a" * 5000, "%s{}[/]<b>", [], [[]], [None], ["x"] * 3, {},
    {"x": {}}, {"": None}, 10**400,
)  # fmt: skip
PIECES = (
    b"\x00", b"\xff", b"\n", b"{", b"}", b"[" * 2000, b'"', b"\\ud800", b"\\", b"1e999", b"NaN", b"null", b"-", b",",
    b":", b"9" * 5000, b"'", b"&a", b"*a", b"!!python/object:os.system", b"\t", b"\xef\xbb\xbf", b"{{",
    b"{% for x in y %}", b"#",
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A file that is spoilt, and a command that reads it.

    Args:
        file: relative to the folder around everything.
        command: what is typed there.
        mend: makes the digests of the file right again, so that its shape is looked at.
    """

    file: str
    command: tuple[str, ...]
    mend: Callable[[Path], None] | None = None


def spoilt(raw: bytes, draw: random.Random) -> bytes:
    """Return a file's bytes as something spoilt them: a value of another kind, or bytes lost, doubled, changed."""
    if draw.random() < 0.6:
        by_value = _other_value(raw, draw)
        if by_value is not None:
            return by_value
    changed = bytearray(raw)
    for _ in range(draw.choice((1, 1, 2, 8))):
        at = draw.randrange(len(changed) + 1)
        end = min(len(changed), at + draw.choice((1, 4, 64, 1000)))
        what = draw.randrange(5)
        if what == 0 and at < len(changed):
            changed[at] ^= 1 << draw.randrange(8)
        elif what == 1:
            del changed[at:end]
        elif what == 2:
            changed[at:at] = changed[at:end]
        elif what == 3:
            changed[at:at] = draw.choice(PIECES)
        else:
            del changed[at:]
    return bytes(changed)


def _other_value(raw: bytes, draw: random.Random) -> bytes | None:
    """Return JSON, or one line of JSONL, with one value changed, gone, renamed or wrapped; None if it is neither."""
    lines = raw.splitlines(keepends=True)
    for pieces in ([raw], lines):
        at = draw.randrange(len(pieces)) if pieces else 0
        try:
            whole = json.loads(pieces[at])
        except (ValueError, IndexError):
            continue
        whole = _changed(copy.deepcopy(whole), draw)
        text = json.dumps(whole).encode()
        return (
            text if len(pieces) == 1 and pieces[0] is raw else b"".join([*pieces[:at], text + b"\n", *pieces[at + 1 :]])
        )
    return None


def _changed(whole: Any, draw: random.Random) -> Any:
    places = list(_places(whole))
    if not places or draw.random() < 0.03:
        return draw.choice(VALUES)
    holder, key = draw.choice(places)
    what = draw.randrange(6)
    if what == 0:
        del holder[key]
    elif what == 1 and isinstance(holder, dict):
        holder[draw.choice(("x", "", key + "s"))] = holder.pop(key)
    elif what == 2:
        holder[key] = [holder[key]]
    else:
        holder[key] = draw.choice(VALUES)
    return whole


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def mend_folder(path: Path) -> None:
    """Make a folder's manifest right again after one of its files was spoilt."""
    manifest = json.loads((path.parent / atomic.MANIFEST).read_bytes())
    if path.name != atomic.MANIFEST:
        manifest["files"][path.name] = {"size": path.stat().st_size, "sha256": atomic.digest_file(path)}
        manifest["digest"] = atomic.digest_record(manifest)
        (path.parent / atomic.MANIFEST).write_text(json.dumps(manifest))


def without_digests(run: Path) -> None:
    """Take the digests out of a run's records, as an earlier version left them."""
    for name in ("manifest.json", "status.json"):
        record = json.loads((run / name).read_bytes())
        (run / name).write_text(json.dumps({key: one for key, one in record.items() if key not in ("digest", "files")}))


def complaints(home: Path, target: Target, numbers: Sequence[int]) -> list[str]:
    """Run a command on spoilt files, in a process that ends with them; return what is wrong with its answers."""
    ready, given = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ready)
        with os.fdopen(given, "wb", buffering=0) as answer:
            _bound()
            forked.CHILDREN = True
            for number in numbers:
                answer.write(pickle.dumps((number, "did not answer")))
                signal.alarm(SECONDS)
                answer.write(pickle.dumps((number, _complaint(home, target, number))))
        os._exit(0)
    os.close(given)
    said: dict[int, str] = {}
    with os.fdopen(ready, "rb") as answer:
        while True:
            try:
                number, wrong = pickle.load(answer)  # our own child wrote it
            except EOFError:
                break
            said[number] = wrong
    _, status = os.waitpid(pid, 0)
    missing = [] if status == 0 else [f"ended with {status}"]
    return missing + [f"{target.file} {number}: {wrong}" for number, wrong in said.items() if wrong]


def _bound() -> None:
    with open("/proc/self/statm") as file:
        held = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, resource.RLIM_INFINITY))


def _complaint(home: Path, target: Target, number: int) -> str:
    path = home / target.file
    whole, beside = path.read_bytes(), (path.parent / atomic.MANIFEST)
    manifest = beside.read_bytes() if target.mend is not None else b""
    path.write_bytes(spoilt(whole, random.Random(f"{target.file} {target.command} {number}")))
    try:
        if target.mend is not None:
            target.mend(path)
        answer = kd(*target.command, folder=home)
    finally:
        path.write_bytes(whole)
        if target.mend is not None and path != beside:
            beside.write_bytes(manifest)
    lines = answer.err.splitlines()
    if answer.code not in DOCUMENTED:
        return f"exit {answer.code}: {answer.err[-500:]}"
    if answer.code and len(answer.error_lines) != 1:
        return f"{len(answer.error_lines)} error lines: {answer.err[-500:]}"
    return next((line for line in lines if "BUG-" in line or line.startswith("Traceback")), "")
