"""Stores replies, one JSON line each, so that a stopped run goes on and every number can be traced."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdcli.storage import atomic, stored


class ReplyStore:
    """An append-only file of replies, found again by what was asked.

    A line that a kill left half written is cut off when the file is opened again.

    Args:
        path: the file; made with its folder when the first reply comes.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._replies: dict[str, str] = {}
        self._size = 0
        if path.is_file():
            self._read()

    def __len__(self) -> int:
        return len(self._replies)

    def find(self, question: tuple[str, Mapping[str, Any]]) -> bytes | None:
        """Return the reply to a question, None if there is none.

        Args:
            question: address and body of the request.
        """
        reply = self._replies.get(_key(question))
        return None if reply is None else reply.encode()

    def add(self, question: tuple[str, Mapping[str, Any]], raw: bytes) -> None:
        """Append a reply and flush it to disk.

        Raises:
            MachineError: the disk is full or may not be written.
        """
        reply = raw.decode("utf-8", "replace")
        entry = {"key": _key(question), "asked": question[1], "reply": reply}
        line = json.dumps({**entry, "check": _check(entry)}) + "\n"
        atomic.make_folder(self._path.parent)
        file = atomic.AppendOnlyFile(self._path, self._size)
        try:
            file.add(line.encode())
        finally:
            file.close()
        self._size += len(line.encode())
        self._replies[_key(question)] = reply

    def _read(self) -> None:
        with self._path.open("rb") as file:
            for raw in file:
                if not raw.endswith(b"\n"):
                    return
                self._size += len(raw)
                self._replies |= _entry(raw)


def kept_path(output: Path) -> Path:
    """Return where the replies of a command that writes into ``output`` are kept: beside it.

    >>> kept_path(Path("runs/eval")).as_posix()
    'runs/eval.replies.jsonl'
    """
    return output.with_name(f"{output.name}.replies.jsonl")


def _entry(raw: bytes) -> dict[str, str]:
    """Return key and reply of a line; nothing of a damaged one, whose question is asked again."""
    try:
        entry = stored.parse(raw)
        key, reply = entry["key"], entry["reply"]
        if entry.get("check", _check(entry)) != _check(entry):  # older files carry none
            return {}
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}
    return {key: reply} if isinstance(key, str) and isinstance(reply, str) else {}


def _check(entry: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in entry.items() if name != "check"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:8]


def _key(question: tuple[str, Mapping[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()
