"""What is told of a teacher's text, and what is kept of how it came about."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcli import durable, stored
from kdcli.errors import ExperimentChangedError
from kdcli.runs import seal
from kdcli.runs.writing.rows import ROWS

ABOUT = "about.json"


@dataclass(frozen=True)
class TextRecord:
    """A teacher's text.

    Args:
        rows: JSONL that trainings read.
        text: folder of everything that was written, before any filter.
        answers: how many there are.
        kept: rows.
        dropped: why answers are no rows -> how many.
        tokens: tokens of all answers, end tokens included.
        open: rows whose answer was cut.
        same: rows that read back as the tokens written.
        written: tokens that this call wrote.
        seconds: what that took.
    """

    rows: Path
    text: Path
    answers: int
    kept: int
    dropped: dict[str, int]
    tokens: int
    open: int
    same: int
    written: int
    seconds: float

    @property
    def speed(self) -> float:
        """Tokens per second of this call; 0 where nothing was left to write."""
        return self.written / self.seconds if self.written and self.seconds else 0.0


@dataclass(frozen=True)
class _About:
    """What is read of ``about.json``."""

    text: str


def check_same_text(folder: Path, name: str) -> None:
    """Refuse a folder whose rows come from another text.

    Args:
        folder: where rows are to be written.
        name: of the text's folder.

    Raises:
        ExperimentChangedError: TEXT-03.
        IntegrityError: its note cannot be read.
    """
    path = folder / ABOUT
    if not path.is_file():
        return
    if stored.read_record(path, _About, fix="choose another -o").text != name:
        what = "the folder holds a text of another teacher, of other end tokens, prompts or options"
        raise ExperimentChangedError("TEXT-03", what, where=str(folder), fix="choose another -o; filters may change")


def keep_about(folder: Path, about: dict[str, Any]) -> None:
    """Write how the rows came about, and the digests of both files."""
    durable.write_file(folder / ABOUT, json.dumps(about, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    seal.seal(folder, (ROWS, ABOUT), "text")
