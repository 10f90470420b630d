"""Stores replies, one JSON line each, so that a stopped run goes on and every number can be traced."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from kdcli.storage import atomic
from kdcli.storage.jsonl import Entry, JsonlStore

Question: TypeAlias = tuple[str, Mapping[str, Any]]
"""Address and body of a request."""


class ReplyStore:
    """Replies, found again by what was asked.

    Args:
        path: the file; made with its folder when the first reply comes. Older files have no checksums.
    """

    def __init__(self, path: Path) -> None:
        self._lines = JsonlStore(path, _key_of, unchecked=True)

    def __len__(self) -> int:
        return len(self._lines)

    def find(self, question: Question) -> bytes | None:
        """Return the reply to a question, None if there is none."""
        entry = self._lines.find(_key(question))
        return None if entry is None else entry["reply"].encode()

    def add(self, question: Question, raw: bytes) -> None:
        """Append a reply and flush it to disk.

        Raises:
            MachineError: the disk is full or may not be written.
        """
        atomic.make_folder(self._lines.path.parent)
        self._lines.add({"key": _key(question), "asked": question[1], "reply": raw.decode("utf-8", "replace")})


def kept_path(output: Path) -> Path:
    """Return where the replies of a command that writes into ``output`` are stored: next to it.

    >>> kept_path(Path("runs/eval")).as_posix()
    'runs/eval.replies.jsonl'
    """
    return output.with_name(f"{output.name}.replies.jsonl")


def _key_of(entry: Entry) -> str:
    if not (isinstance(entry["key"], str) and isinstance(entry["reply"], str)):
        raise TypeError("expected texts")
    return entry["key"]


def _key(question: Question) -> str:
    return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()
