"""Answers of one evaluation: stored as they come, and generated where they are missing."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from kdcli.config.sections import GenerationConfig
from kdcli.data.images import RowImages
from kdcli.data.tokenize import TokenDataset
from kdcli.end_tokens import UNTOLD
from kdcli.errors import MachineError
from kdcli.events import Event, Report
from kdcli.generation import Completion
from kdcli.storage import atomic
from kdcli.storage.jsonl import Entry, JsonlStore, line_of, read_lines


@dataclass(frozen=True)
class TextSamples:
    """What was asked and what was answered.

    Args:
        predictions: answers, ``[example][sampling seed]``.
        references: valid answers of each example.
        prompts: prompt of each example.
        ended: whether each answer was ended by the model itself.
        reference_tokens: tokens of each example's first reference, end token left out; None without a tokenizer.
        ended_is_known: whether ``ended`` says anything; a file of answers may not say.
        answers: the answers as tokens, as ``predictions``; None where they came as texts.
    """

    predictions: list[list[str]]
    references: list[list[str]]
    prompts: list[str]
    ended: list[list[bool]]
    reference_tokens: list[int] | None = None
    ended_is_known: bool = True
    answers: list[list[Completion]] | None = None

    @property
    def also(self) -> dict[str, Any]:
        """What some metrics read besides the texts."""
        return {"ended": self.ended if self.ended_is_known else None, "reference_tokens": self.reference_tokens}


# Where answers come from: a model in this process, or anything else that is asked the same questions.


@dataclass(frozen=True)
class Prompt:
    """A prompt, and the seeds it is still to be answered for.

    Args:
        number: of the example; every draw follows from seed and number alone.
        ids: the prompt's tokens, as the model reads them.
        text: the prompt, template and all; empty for plain text.
        seeds: sampling seeds, one answer each.
        images: those of the prompt; None for text alone.
    """

    number: int
    ids: tuple[int, ...]
    text: str
    seeds: tuple[int, ...]
    images: RowImages | None = None


@dataclass(frozen=True)
class Answer:
    """One answer to one question.

    Args:
        number: of the example.
        seed: the sampling seed it was drawn with.
        text: the answer, without what ends it, white space cut at both ends.
        answer: its tokens, empty where the source gives text only, and whether the source ended it itself.
    """

    number: int
    seed: int
    text: str
    answer: Completion


@runtime_checkable
class AnswerSource(Protocol):
    """A source of answers."""

    @property
    def identity(self) -> str:
        """What answers are kept under: another identity is another source."""
        ...

    def answers_for(self, questions: Sequence[Prompt], report: Report) -> Iterator[Answer]:
        """Yield one answer per question and seed, in whatever order they are finished.

        Args:
            questions: what is to be answered.
            report: called with the number of answers and tokens per second.
        """
        ...


# Answers are kept as they come, one JSON line each: a killed evaluation goes on with what is unanswered.


ANSWERS = "answers.jsonl"
_SECONDS_BETWEEN_FLUSHES = 5.0


@dataclass(frozen=True)
class AnswerKey:
    """Everything an answer follows from, but the question.

    Args:
        source: identity of the model or server.
        generation: settings; batch size and further seeds change no answer.
    """

    source: str
    generation: GenerationConfig

    def key(self, question: Prompt, seed: int) -> str:
        """Return what an answer is found by: 32 hex digits over source, settings, prompt, example and seed."""
        settings = self.generation.model_dump(mode="json", exclude={"seeds", "batch_tokens"})
        parts = [self.source, settings, question.number, list(question.ids), question.text, seed]
        parts += [] if question.images is None else [question.images.digest]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


class AnswerStore:
    """The answers of one evaluation, on disk.

    While the evaluation lasts they are next to its folder, in ``.<name>.answers.jsonl``; a finished one holds
    them itself, as ``answers.jsonl``. A line is written when an answer ends, so that a killed process loses
    the answers under way and no other; it is flushed to the disk every five seconds. A damaged line counts as
    no answer.

    Args:
        folder: of the evaluation; it need not exist.
        asking: what answers follow from; others that lie there are left alone.
        others: folders of further evaluations, whose answers are as good.
    """

    def __init__(self, folder: Path, asking: AnswerKey, others: Sequence[Path] = ()) -> None:
        self._asking = asking
        self._lines = JsonlStore(_store_path(folder), seconds=_SECONDS_BETWEEN_FLUSHES)
        places = (folder / ANSWERS, *(other / ANSWERS for other in reversed(others)))
        self._stores = [self._lines, *map(JsonlStore, places)]
        self._used: dict[str, Entry] = {}

    def find(self, question: Prompt, seed: int) -> Answer | None:
        """Return the answer that was made before, None if there is none."""
        key = self._asking.key(question, seed)
        entry = next((entry for store in self._stores if (entry := store.find(key)) is not None), None)
        if entry is None:
            return None
        self._used[key] = entry
        end = entry.get("end", UNTOLD if entry["ended"] else None)  # an older line does not tell
        return Answer(question.number, seed, entry["text"], Completion(tuple(entry["ids"]), end))

    def add(self, question: Prompt, said: Answer) -> None:
        """Keep an answer.

        Raises:
            MachineError: the disk is full or may not be written.
        """
        key = self._asking.key(question, said.seed)
        self._used[key] = {
            "key": key, "example": said.number, "seed": said.seed, "text": said.text,
            "ids": list(said.answer.ids), "ended": said.answer.ended, "end": said.answer.end,
        }  # fmt: skip
        self._lines.add(self._used[key])

    def close(self) -> None:
        """Flush and close the file."""
        self._lines.close()

    def write_into(self, folder: Path, before: Path | None = None) -> None:
        """Write the answers that were asked for, ordered by example and seed, as ``answers.jsonl``.

        Args:
            folder: where to write.
            before: an evaluation whose answers stay, too.
        """
        earlier = read_lines(before / ANSWERS) if before is not None else ()
        both = {**{entry["key"]: entry for _, entry in earlier}, **self._used}
        entries = sorted(both.values(), key=lambda entry: (entry["example"], entry["seed"]))
        (folder / ANSWERS).write_bytes(b"".join(map(line_of, entries)))

    def forget(self) -> None:
        """Remove the file next to the folder, now that the folder holds its answers."""
        self.close()
        atomic.remove_file(self._lines.path)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed evaluations left next to a finished one's folder, where the disk may be written."""
    with suppress(MachineError):
        atomic.remove_temporaries(folder.parent)
        kept = _store_path(folder)
        if kept in superseded_answers(folder.parent):
            atomic.remove_file(kept)


def superseded_answers(evaluations: Path) -> list[Path]:
    """Return the files of answers next to finished evaluations that hold nothing which the evaluation does not."""
    found = []
    for path in sorted(evaluations.glob(f".*.{ANSWERS}")):
        folder = path.with_name(path.name[1:].removesuffix(f".{ANSWERS}"))
        if JsonlStore(path).keys() <= JsonlStore(folder / ANSWERS).keys():
            found.append(path)
    return found


def _store_path(folder: Path) -> Path:
    """Return where the answers of an evaluation lie while it lasts."""
    return folder.with_name(f".{folder.name}.{ANSWERS}")


def prompts_of(dataset: TokenDataset, config: GenerationConfig) -> list[Prompt]:
    """Return one question per row with all sampling seeds; greedy answers are all the same, so one seed does."""
    seeds = config.seeds if config.temperature > 0 else config.seeds[:1]
    return [
        Prompt(number, example.question, example.prompt, seeds, example.images)
        for number, example in enumerate(dataset.examples)
    ]


def answer(
    source: AnswerSource,
    dataset: TokenDataset,
    config: GenerationConfig,
    report: Report,
    kept: AnswerStore | None = None,
) -> TextSamples:
    """Return one answer per row and sampling seed, asking only for those that are not kept.

    Args:
        source: who answers.
        dataset: rows whose prompts are asked.
        config: how answers are sampled.
        report: called with progress events.
        kept: answers made before, and where to keep those made now; None keeps nothing.

    Raises:
        KDError: whatever the source refuses; what was answered before is kept.
    """
    questions = prompts_of(dataset, config)
    said = ask(source, questions, report, kept)
    rows = [[said[question.number, seed] for seed in question.seeds] for question in questions]
    return TextSamples(
        predictions=[[one.text for one in row] for row in rows],
        references=[list(example.references) for example in dataset.examples],
        prompts=[example.prompt for example in dataset.examples],
        ended=[[one.answer.ended for one in row] for row in rows],
        answers=[[one.answer for one in row] for row in rows],
    )


def ask(
    source: AnswerSource, questions: Sequence[Prompt], report: Report, kept: AnswerStore | None = None
) -> dict[tuple[int, int], Answer]:
    """Return the answer to every question and seed, by example and seed."""
    if kept is None:
        return {(one.number, one.seed): one for one in source.answers_for(questions, report)}
    said = {}
    for question in questions:
        for seed in question.seeds:
            if (known := kept.find(question, seed)) is not None:
                said[question.number, seed] = known
    open_ = [
        replace(question, seeds=seeds)
        for question in questions
        if (seeds := tuple(seed for seed in question.seeds if (question.number, seed) not in said))
    ]
    if said:
        total = sum(len(question.seeds) for question in questions)
        report(Event("note", f"{len(said):,} of {total:,} answers were made before"))
    by_number = {question.number: question for question in questions}
    try:
        for one in source.answers_for(open_, report) if open_ else ():
            kept.add(by_number[one.number], one)
            said[one.number, one.seed] = one
    finally:
        kept.close()
    return said
