"""Answers are kept as they come, one JSON line each: a killed evaluation goes on with what is unanswered."""

import hashlib
import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcli import durable, stored
from kdcli.config import GenerationConfig
from kdcli.end_tokens import UNTOLD
from kdcli.errors import MachineError
from kdcli.generate import Answer
from kdcli.runs.evaluation.answering import Question, Said

ANSWERS = "answers.jsonl"
_SECONDS_BETWEEN_SYNCS = 5.0


@dataclass(frozen=True)
class Asking:
    """Everything an answer follows from, but the question.

    Args:
        source: identity of the model or server.
        generation: settings; batch size and further seeds change no answer.
    """

    source: str
    generation: GenerationConfig

    def key(self, question: Question, seed: int) -> str:
        """Return what an answer is found by: 32 hex digits over source, settings, prompt, example and seed."""
        settings = self.generation.model_dump(mode="json", exclude={"seeds", "batch_tokens"})
        parts = [self.source, settings, question.number, list(question.ids), question.text, seed]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


class KeptAnswers:
    """The answers of one evaluation, on disk.

    While the evaluation lasts they are beside its folder, in ``.<name>.answers.jsonl``; a finished one holds
    them itself, as ``answers.jsonl``. A line is written when an answer ends, so that a killed process loses
    the answers under way and no other; it is flushed to the disk every five seconds. A damaged line counts as
    no answer.

    Args:
        folder: of the evaluation; it need not exist.
        asking: what answers follow from; others that lie there are left alone.
        others: folders of further evaluations, whose answers are as good.
    """

    def __init__(self, folder: Path, asking: Asking, others: Sequence[Path] = ()) -> None:
        self._path = folder.with_name(f".{folder.name}.{ANSWERS}")
        self._asking = asking
        self._file: durable.Lines | None = None
        self._synced = time.monotonic()
        self._found: dict[str, dict[str, Any]] = {}
        for path in (*(other / ANSWERS for other in others), folder / ANSWERS, self._path):
            self._found |= _read(path)
        self._used: dict[str, dict[str, Any]] = {}

    def find(self, question: Question, seed: int) -> Said | None:
        """Return the answer that was made before, None if there is none."""
        key = self._asking.key(question, seed)
        entry = self._found.get(key)
        if entry is None:
            return None
        self._used[key] = entry
        end = entry.get("end", UNTOLD if entry["ended"] else None)  # an older line does not tell
        return Said(question.number, seed, entry["text"], Answer(tuple(entry["ids"]), end))

    def add(self, question: Question, said: Said) -> None:
        """Keep an answer.

        Raises:
            MachineError: the disk is full or may not be written.
        """
        key = self._asking.key(question, said.seed)
        entry = {
            "key": key, "example": said.number, "seed": said.seed, "text": said.text,
            "ids": list(said.answer.ids), "ended": said.answer.ended, "end": said.answer.end,
        }  # fmt: skip
        self._used[key] = entry
        if self._file is None:
            self._file = durable.Lines(self._path)
        self._file.add(_line(entry))
        if time.monotonic() - self._synced > _SECONDS_BETWEEN_SYNCS:
            self._file.settle()
            self._synced = time.monotonic()

    def close(self) -> None:
        """Flush and close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def write_into(self, folder: Path, before: Path | None = None) -> None:
        """Write the answers that were asked for, ordered by example and seed, as ``answers.jsonl``.

        Args:
            folder: where to write.
            before: an evaluation whose answers stay, too.
        """
        both = {**(_read(before / ANSWERS) if before is not None else {}), **self._used}
        entries = sorted(both.values(), key=lambda entry: (entry["example"], entry["seed"]))
        (folder / ANSWERS).write_bytes(b"".join(map(_line, entries)))

    def forget(self) -> None:
        """Remove what lies beside the folder, now that the folder holds it."""
        self.close()
        durable.remove_file(self._path)


def clear_beside(folder: Path) -> None:
    """Remove what killed evaluations left beside a finished one's folder, where the disk may be written."""
    with suppress(MachineError):
        durable.sweep(folder.parent)
        kept = folder.with_name(f".{folder.name}.{ANSWERS}")
        if kept in superseded_answers(folder.parent):
            durable.remove_file(kept)


def superseded_answers(evaluations: Path) -> list[Path]:
    """Return the files of answers beside finished evaluations that hold nothing which the evaluation does not."""
    found = []
    for path in sorted(evaluations.glob(f".*.{ANSWERS}")):
        folder = path.with_name(path.name[1:].removesuffix(f".{ANSWERS}"))
        if _read(path).keys() <= _read(folder / ANSWERS).keys():
            found.append(path)
    return found


def _line(entry: dict[str, Any]) -> bytes:
    return (json.dumps({**entry, "check": _check(entry)}) + "\n").encode()


def _check(entry: dict[str, Any]) -> str:
    rest = {name: value for name, value in entry.items() if name != "check"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:8]


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise durable.refused(error, path) from error
    entries = [entry for entry in map(_entry, lines) if entry is not None]
    return {entry["key"]: {name: value for name, value in entry.items() if name != "check"} for entry in entries}


def _entry(raw: bytes) -> dict[str, Any] | None:
    try:
        entry = stored.parse(raw)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and entry.get("check") == _check(entry) else None
