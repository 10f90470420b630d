"""What a teacher wrote once: made prompt by prompt, kept as it comes, and found again by what it follows from."""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kdcli.data.tokenize import Example, first_context
from kdcli.generation.batch import Answer, Asked, answers
from kdcli.generation.beam import beam_answers
from kdcli.generation.scoring import response_log_probs
from kdcli.models.load import LanguageModel, twin
from kdcli.models.tokenizer import answer_key
from kdcli.sources.base import Author, Ground, Wanted
from kdcli.sources.completions import Sentence, line_of, ordered, read_sentences
from kdcli.sources.sequences import SAID, continued, draw_seed, room
from kdcli.sources.teacher_text.options import TeacherTextOptions
from kdcli.storage import atomic

# A model that is loaded here as the author of a teacher's text.


class LocalAuthor:
    """A model that is loaded here; answers are drawn by (seed, row) alone and read once more for their likelihood.

    Args:
        model: the teacher.
        ground: the precision in which it writes.
    """

    def __init__(self, model: LanguageModel, ground: Ground) -> None:
        self._whole, self._autocast = model, ground.autocast
        self.tokenizer, self.ends, self.digest = model.tokenizer, model.ends, model.digest
        self.precision = str(ground.autocast)

    @cached_property
    def model(self) -> LanguageModel:
        """The model in the precision in which it writes."""
        return self._whole if self._autocast is None else twin(self._whole, self._autocast)

    def write(
        self, source: TeacherTextOptions, ground: Ground, prompts: Mapping[int, Example], wanted: Wanted
    ) -> Iterator[Sentence]:
        """Yield the answers wanted, as they end."""
        for row, number, answer in self._answers(source, ground, prompts, wanted):
            example = continued(prompts[row], answer)
            log_probs = response_log_probs(self.model, example, ground.vocab or self.model.vocab)
            yield Sentence(example, row, number, answer.ended, -log_probs.double().mean().item())

    def _answers(
        self, source: TeacherTextOptions, ground: Ground, prompts: Mapping[int, Example], wanted: Wanted
    ) -> Iterator[tuple[int, int, Answer]]:
        if source.decode == "beam":
            for row in wanted:
                prompt = prompts[row].question
                found = beam_answers(
                    self.model, prompt, width=source.beams, best=source.answers, ids=ground.vocab or self.model.vocab,
                    most=min(source.max_new_tokens, room(prompts[row], ground) or source.max_new_tokens),
                )  # fmt: skip
                ground.report(sum(len(answer.ids) + answer.ended for answer in found))
                yield from ((row, number, answer) for number, answer in enumerate(found))
            return
        seeds = {draw_seed(source.seed, SAID, number): number for number in range(source.answers)}
        back = {number: seed for seed, number in seeds.items()}
        rows = list(wanted)
        asked = [
            Asked(
                prompts[row].question, row, tuple(back[n] for n in wanted[row]),
                room(prompts[row], ground),
            )
            for row in rows
        ]  # fmt: skip
        for place, seed, answer in answers(self.model, asked, source.sampling, rows=ground.vocab, report=ground.report):
            yield rows[place], seeds[seed], answer


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


def made_text(source: TeacherTextOptions, ground: Ground) -> MadeText:
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
    atomic.make_folder(ground.folder.parent)
    atomic.make_inside(ground.folder.parent, ground.folder.name)
    with nullcontext() if final.is_dir() else _alone(final.with_name(f".{final.name}.lock")):
        if not final.is_dir():
            started = time.monotonic()
            fresh = _write(source, ground, prompts, final)
        atomic.remove_file(_partial(final))
    seconds = time.monotonic() - started if fresh else 0.0
    atomic.verify_folder(final)
    return MadeText(ordered(read_sentences(final / TEXT, prompts)), final, fresh, seconds)


def author_of(ground: Ground) -> Author:
    """Return who writes: the author handed in, else the teacher that is loaded here."""
    if ground.author is not None:
        return ground.author
    assert ground.teacher is not None, "the source declares needs().teacher"
    return LocalAuthor(ground.teacher, ground)


def folder_name(source: TeacherTextOptions, ground: Ground, prompts: Mapping[int, Example]) -> str:
    """Return the name of the folder that keeps a text, whoever asks for it."""
    return f"teacher-{text_key(source, ground, prompts)[:16]}"


def text_key(source: TeacherTextOptions, ground: Ground, prompts: Mapping[int, Example]) -> str:
    """Return the sha256 over everything the text follows from; filters only choose among it."""
    state = hashlib.sha256(json.dumps(made_of(source, ground), sort_keys=True).encode())
    for row, one in prompts.items():
        state.update(repr((row, one.question)).encode())
    return state.hexdigest()


def made_of(source: TeacherTextOptions, ground: Ground) -> dict[str, Any]:
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


def prompts_of(source: TeacherTextOptions, ground: Ground) -> dict[int, Example]:
    """Return row -> an example whose prompt is asked; without data, one that holds only the first token."""
    if source.prompts == "rows":
        return dict(enumerate(ground.dataset.examples))
    author = author_of(ground)
    first = first_context(author.tokenizer, author.ends)
    return {row: Example((first,), 1, "", (), "no prompt") for row in range(len(ground.dataset))}


def _write(
    source: TeacherTextOptions, ground: Ground, prompts: Mapping[int, Example], final: Path
) -> frozenset[tuple[int, int]]:
    """Write what is missing; return row and answer of what was written."""
    partial, tokenizer = _partial(final), author_of(ground).tokenizer
    known = {_place(one): one for one in read_sentences(partial, prompts)} if partial.is_file() else {}
    there = frozenset(known)
    file = atomic.Lines(partial)
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
    atomic.commit_folder(final, lambda folder: _fill(folder, body), about)
    return frozenset(known) - there


def _partial(final: Path) -> Path:
    """Return where the answers lie until all of them are there."""
    return final.with_name(f".{final.name}.jsonl")


def _place(one: Sentence) -> tuple[int, int]:
    return one.row, one.answer


def _fill(folder: Path, body: bytes) -> None:
    (folder / TEXT).write_bytes(body)


def _append(file: atomic.Lines, line: bytes, synced: float) -> float:
    file.add(line)
    if time.monotonic() - synced < _SECONDS_BETWEEN_SYNCS:
        return synced
    file.settle()
    return time.monotonic()


def _make(
    source: TeacherTextOptions,
    ground: Ground,
    prompts: Mapping[int, Example],
    known: Mapping[tuple[int, int], Sentence],
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
        handle = atomic.open_handle(path, os.O_RDWR | os.O_CREAT)
        fcntl.lockf(handle, fcntl.LOCK_EX)
    except OSError as error:
        raise atomic.refused(error, path) from error
    try:
        yield
    finally:
        os.close(handle)
