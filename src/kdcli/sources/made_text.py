"""What a teacher wrote once: made prompt by prompt, kept as it comes, and found again by what it follows from."""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcli import durable
from kdcli.data.examples import Example
from kdcli.data.tokens import first_context
from kdcli.models.ends import answer_key
from kdcli.sources.author import Author
from kdcli.sources.base import Ground
from kdcli.sources.local_author import LocalAuthor
from kdcli.sources.sentences import Sentence, line_of, ordered, read_sentences

if TYPE_CHECKING:
    from kdcli.sources.teacher import TeacherSource

TEXT = "text.jsonl"
_FILTERS = frozenset({"min_tokens", "max_nll", "ended"})
_SECONDS_BETWEEN_SYNCS = 5.0


@dataclass(frozen=True)
class MadeText:
    """Everything a teacher was asked to write.

    Args:
        sentences: ordered by row and answer.
        folder: where they are kept; None if nowhere.
        fresh: row and answer of those that this call wrote.
        seconds: what that took.
    """

    sentences: tuple[Sentence, ...]
    folder: Path | None
    fresh: frozenset[tuple[int, int]] = frozenset()
    seconds: float = 0.0


def made_text(source: "TeacherSource", ground: Ground) -> MadeText:
    """Return what the teacher wrote, and let it write what is missing.

    A line is written when an answer is done, so that a killed process loses the answers under way and no other.
    Several processes that want the same text wait for the one that writes it.

    Args:
        source: how the teacher writes.
        ground: teacher, prompts, and the folder to keep the text in.

    Raises:
        KDError: what the teacher refuses, or the disk; answers made before are kept.
    """
    prompts, fresh, started = prompts_of(source, ground), frozenset(), time.monotonic()
    if ground.folder is None:
        made = ordered(_make(source, ground, prompts, {}))
        return MadeText(made, None, frozenset(map(_place, made)), time.monotonic() - started)
    final = ground.folder / folder_name(source, ground, prompts)
    durable.make_folder(ground.folder.parent)
    durable.make_inside(ground.folder.parent, ground.folder.name)
    with nullcontext() if final.is_dir() else _alone(final.with_name(f".{final.name}.lock")):
        if not final.is_dir():
            started = time.monotonic()
            fresh = _write(source, ground, prompts, final)
        durable.remove_file(_partial(final))
    seconds = time.monotonic() - started if fresh else 0.0
    durable.verify_folder(final)
    return MadeText(ordered(read_sentences(final / TEXT, prompts)), final, fresh, seconds)


def author_of(ground: Ground) -> Author:
    """Return who writes: the author handed in, else the teacher that is loaded here."""
    if ground.author is not None:
        return ground.author
    assert ground.teacher is not None, "the source declares needs().teacher"
    return LocalAuthor(ground.teacher, ground)


def folder_name(source: "TeacherSource", ground: Ground, prompts: Mapping[int, Example]) -> str:
    """Return the name of the folder that keeps a text, whoever asks for it."""
    return f"teacher-{text_key(source, ground, prompts)[:16]}"


def text_key(source: "TeacherSource", ground: Ground, prompts: Mapping[int, Example]) -> str:
    """Return the sha256 over everything the text follows from; filters only choose among it."""
    state = hashlib.sha256(json.dumps(made_of(source, ground), sort_keys=True).encode())
    for row, one in prompts.items():
        state.update(repr((row, one.question)).encode())
    return state.hexdigest()


def made_of(source: "TeacherSource", ground: Ground) -> dict[str, Any]:
    """Return what a text follows from beside its prompts."""
    author = author_of(ground)
    return {
        "teacher": author.digest,
        "options": source.model_dump(mode="json", exclude=set(_FILTERS)),
        "ids": ground.vocab,
        "longest": ground.longest,
        "precision": author.precision,
        "text": answer_key(author.tokenizer, author.ends),
    }


def prompts_of(source: "TeacherSource", ground: Ground) -> dict[int, Example]:
    """Return row -> an example whose prompt is asked; without data, one that holds only the first token."""
    if source.prompts == "rows":
        return dict(enumerate(ground.dataset.examples))
    author = author_of(ground)
    first = first_context(author.tokenizer, author.ends)
    return {row: Example((first,), 1, "", (), "no prompt") for row in range(len(ground.dataset))}


def _write(
    source: "TeacherSource", ground: Ground, prompts: Mapping[int, Example], final: Path
) -> frozenset[tuple[int, int]]:
    """Write what is missing; return row and answer of what was written."""
    partial, tokenizer = _partial(final), author_of(ground).tokenizer
    known = {_place(one): one for one in read_sentences(partial, prompts)} if partial.is_file() else {}
    there = frozenset(known)
    file = durable.Lines(partial)
    try:
        synced = time.monotonic()
        for one in _make(source, ground, prompts, known):
            if _place(one) in known:
                continue
            known[_place(one)] = one
            synced = _append(file, line_of(one, tokenizer), synced)
    finally:
        file.close()
    body = b"".join(line_of(one, tokenizer) for one in ordered(known.values()))
    about = {"kind": "text", "made_of": made_of(source, ground)}
    durable.commit_folder(final, lambda folder: _fill(folder, body), about)
    return frozenset(known) - there


def _partial(final: Path) -> Path:
    """Return where the answers lie until all of them are there."""
    return final.with_name(f".{final.name}.jsonl")


def _place(one: Sentence) -> tuple[int, int]:
    return one.row, one.answer


def _fill(folder: Path, body: bytes) -> None:
    (folder / TEXT).write_bytes(body)


def _append(file: durable.Lines, line: bytes, synced: float) -> float:
    file.add(line)
    if time.monotonic() - synced < _SECONDS_BETWEEN_SYNCS:
        return synced
    file.settle()
    return time.monotonic()


def _make(
    source: "TeacherSource", ground: Ground, prompts: Mapping[int, Example], known: Mapping[tuple[int, int], Sentence]
) -> Iterator[Sentence]:
    """Yield the answers that are not known, as they end."""
    wanted = {row: [n for n in range(source.answers) if (row, n) not in known] for row in prompts}
    wanted = {row: numbers for row, numbers in wanted.items() if numbers}
    total, done, tokens, started = len(prompts) * source.answers, len(known), 0, time.monotonic()
    ground.progress("the teacher writes", done, total, 0.0)
    for one in author_of(ground).write(source, ground, prompts, wanted):
        done, tokens = done + 1, tokens + one.targets
        ground.progress("the teacher writes", done, total, tokens / max(time.monotonic() - started, 1e-9))
        source.check_likelihood(one)
        yield one


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other process holds the file, and hold it."""
    try:
        handle = durable.open_handle(path, os.O_RDWR | os.O_CREAT)
        fcntl.lockf(handle, fcntl.LOCK_EX)
    except OSError as error:
        raise durable.refused(error, path) from error
    try:
        yield
    finally:
        os.close(handle)
