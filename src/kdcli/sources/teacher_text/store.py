"""The store of teacher text, keyed by what it depends on; written prompt by prompt."""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kdcli.data.tokenize import Example, first_context
from kdcli.generation.batch import Completion, GenerationRequest, answers
from kdcli.generation.beam import beam_answers
from kdcli.generation.scoring import response_log_probs
from kdcli.models.load import LanguageModel, cast_copy
from kdcli.models.tokenizer import answer_key
from kdcli.sources.base import SourceContext, TextGenerator, Wanted
from kdcli.sources.completions import TeacherCompletion, entry_of, ordered, place_of, read_completions
from kdcli.sources.sequences import SAID, draw_seed, max_completion, with_completion
from kdcli.sources.teacher_text.options import TeacherTextOptions
from kdcli.storage import atomic
from kdcli.storage.jsonl import JsonlStore, line_of

# A model that is loaded here as the generator of a teacher's text.


class LocalGenerator:
    """A model that is loaded here; answers are drawn by (seed, row) alone and read once more for their likelihood.

    Args:
        model: the teacher.
        context: the precision in which it writes.
    """

    def __init__(self, model: LanguageModel, context: SourceContext) -> None:
        self._whole, self._autocast = model, context.autocast
        self.tokenizer, self.ends, self.digest = model.tokenizer, model.ends, model.digest
        self.precision = str(context.autocast)

    @cached_property
    def model(self) -> LanguageModel:
        """The model in the precision in which it writes."""
        return self._whole if self._autocast is None else cast_copy(self._whole, self._autocast)

    def write(
        self, source: TeacherTextOptions, context: SourceContext, prompts: Mapping[int, Example], wanted: Wanted
    ) -> Iterator[TeacherCompletion]:
        """Yield the answers wanted, as they end."""
        for row, number, answer in self._answers(source, context, prompts, wanted):
            example = with_completion(prompts[row], answer)
            log_probs = response_log_probs(self.model, example, context.vocab or self.model.vocab)
            yield TeacherCompletion(example, row, number, answer.ended, -log_probs.double().mean().item())

    def _answers(
        self, source: TeacherTextOptions, context: SourceContext, prompts: Mapping[int, Example], wanted: Wanted
    ) -> Iterator[tuple[int, int, Completion]]:
        if source.decode == "beam":
            for row in wanted:
                prompt = prompts[row].question
                found = beam_answers(
                    self.model, prompt, width=source.beams, best=source.answers, ids=context.vocab or self.model.vocab,
                    most=min(source.max_new_tokens, max_completion(prompts[row], context) or source.max_new_tokens),
                )  # fmt: skip
                context.report(sum(len(answer.ids) + answer.ended for answer in found))
                yield from ((row, number, answer) for number, answer in enumerate(found))
            return
        seeds = {draw_seed(source.seed, SAID, number): number for number in range(source.answers)}
        back = {number: seed for seed, number in seeds.items()}
        rows = list(wanted)
        asked = [
            GenerationRequest(
                prompts[row].question, row, tuple(back[n] for n in wanted[row]),
                max_completion(prompts[row], context),
            )
            for row in rows
        ]  # fmt: skip
        for place, seed, answer in answers(
            self.model, asked, source.sampling, rows=context.vocab, report=context.report
        ):
            yield rows[place], seeds[seed], answer


TEXT = "text.jsonl"
FILTERS = frozenset({"min_tokens", "max_nll", "ended", "agree"})
"""Options that choose among what was written; a text does not follow from them."""
_SECONDS_BETWEEN_FLUSHES = 5.0


@dataclass(frozen=True)
class TeacherText:
    """Everything a teacher was asked to write.

    Args:
        sentences: ordered by row and answer.
        folder: where they are kept; None if nowhere.
        fresh: row and answer of those that this call wrote.
        seconds: what that took.
    """

    sentences: tuple[TeacherCompletion, ...]
    folder: Path | None
    fresh: frozenset[tuple[int, int]] = frozenset()
    seconds: float = 0.0


def teacher_text(source: TeacherTextOptions, context: SourceContext) -> TeacherText:
    """Return what the teacher wrote, and let it write what is missing.

    A line is written when an answer is done, so that a killed process loses the answers under way and no other.
    Several processes that want the same text wait for the one that writes it.

    Args:
        source: how the teacher writes.
        context: teacher, prompts, and the folder to keep the text in.

    Raises:
        KDError: what the teacher refuses, or the disk; answers made before are kept.
    """
    prompts, fresh, started = prompts_of(source, context), frozenset(), time.monotonic()
    if context.folder is None:
        made = ordered(_make(source, context, prompts, {}))
        return TeacherText(made, None, frozenset(map(_place, made)), time.monotonic() - started)
    final = context.folder / folder_name(source, context, prompts)
    atomic.make_folder(context.folder.parent)
    atomic.make_inside(context.folder.parent, context.folder.name)
    with nullcontext() if final.is_dir() else _alone(final.with_name(f".{final.name}.lock")):
        if not final.is_dir():
            started = time.monotonic()
            fresh = _write(source, context, prompts, final)
        atomic.remove_file(_partial(final))
    seconds = time.monotonic() - started if fresh else 0.0
    atomic.verify_folder(final)
    return TeacherText(ordered(read_completions(final / TEXT, prompts)), final, fresh, seconds)


def generator_of(context: SourceContext) -> TextGenerator:
    """Return what generates: the generator handed in, else the teacher that is loaded here."""
    if context.generator is not None:
        return context.generator
    assert context.teacher is not None, "the source declares needs().teacher"
    return LocalGenerator(context.teacher, context)


def folder_name(source: TeacherTextOptions, context: SourceContext, prompts: Mapping[int, Example]) -> str:
    """Return the name of the folder that keeps a text, whoever asks for it."""
    return f"teacher-{text_key(source, context, prompts)[:16]}"


def text_key(source: TeacherTextOptions, context: SourceContext, prompts: Mapping[int, Example]) -> str:
    """Return the sha256 over everything the text follows from; filters only choose among it."""
    state = hashlib.sha256(json.dumps(made_of(source, context), sort_keys=True).encode())
    for row, one in prompts.items():
        state.update(repr((row, one.question)).encode())
    return state.hexdigest()


def made_of(source: TeacherTextOptions, context: SourceContext) -> dict[str, Any]:
    """Return what a text follows from besides its prompts."""
    generator = generator_of(context)
    return {
        "teacher": generator.digest,
        "options": source.model_dump(mode="json", exclude=set(FILTERS)),
        "ids": context.vocab,
        "longest": context.longest,
        "precision": generator.precision,
        "text": answer_key(generator.tokenizer, generator.ends),
        **({} if context.feedback is None else {"feedback": context.feedback}),
    }


def prompts_of(source: TeacherTextOptions, context: SourceContext) -> dict[int, Example]:
    """Return row -> an example whose prompt is asked; without data, one that holds only the first token."""
    if source.prompts == "rows":
        return dict(enumerate(context.dataset.examples))
    generator = generator_of(context)
    first = first_context(generator.tokenizer, generator.ends)
    return {row: Example((first,), 1, "", (), "no prompt") for row in range(len(context.dataset))}


def _write(
    source: TeacherTextOptions, context: SourceContext, prompts: Mapping[int, Example], final: Path
) -> frozenset[tuple[int, int]]:
    """Write what is missing; return row and answer of what was written."""
    partial, tokenizer = _partial(final), generator_of(context).tokenizer
    known = {_place(one): one for one in read_completions(partial, prompts)}
    there = frozenset(known)
    with closing(JsonlStore(partial, place_of, seconds=_SECONDS_BETWEEN_FLUSHES, ascii_only=False)) as store:
        for one in _make(source, context, prompts, known):
            if _place(one) not in known:
                known[_place(one)] = one
                store.add(entry_of(one, tokenizer))
    body = b"".join(line_of(entry_of(one, tokenizer), ascii_only=False) for one in ordered(known.values()))
    about = {"kind": "text", "made_of": made_of(source, context)}
    atomic.commit_folder(final, lambda folder: _fill(folder, body), about)
    return frozenset(known) - there


def _partial(final: Path) -> Path:
    """Return where the answers lie until all of them are there."""
    return final.with_name(f".{final.name}.jsonl")


def _place(one: TeacherCompletion) -> tuple[int, int]:
    return one.row, one.answer


def _fill(folder: Path, body: bytes) -> None:
    (folder / TEXT).write_bytes(body)


def _make(
    source: TeacherTextOptions,
    context: SourceContext,
    prompts: Mapping[int, Example],
    known: Mapping[tuple[int, int], TeacherCompletion],
) -> Iterator[TeacherCompletion]:
    """Yield the answers that are not known, as they end."""
    wanted = {row: [n for n in range(source.answers) if (row, n) not in known] for row in prompts}
    wanted = {row: numbers for row, numbers in wanted.items() if numbers}
    total, done, tokens, started = len(prompts) * source.answers, len(known), 0, time.monotonic()
    context.progress("the teacher writes", done, total, 0.0)
    for one in generator_of(context).write(source, context, prompts, wanted):
        done, tokens = done + 1, tokens + one.targets
        context.progress("the teacher writes", done, total, tokens / max(time.monotonic() - started, 1e-9))
        source.check_likelihood(one)
        yield one


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other process holds the file, and hold it."""
    try:
        handle = atomic.open_handle(path, os.O_RDWR | os.O_CREAT)
        fcntl.lockf(handle, fcntl.LOCK_EX)
    except OSError as error:
        raise atomic.disk_error(error, path) from error
    try:
        yield
    finally:
        os.close(handle)
