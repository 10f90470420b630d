"""What a teacher wrote once: made prompt by prompt, kept as it comes, and found again by what it follows from."""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from kdcli import durable
from kdcli.data.examples import Example
from kdcli.generate.answers import Answer, Asked, answers
from kdcli.models.load import LanguageModel
from kdcli.models.twin import twin
from kdcli.sources.base import Ground
from kdcli.sources.beam import beam_answers
from kdcli.sources.log_probs import response_log_probs
from kdcli.sources.writing import SAID, continued, draw_seed, room

if TYPE_CHECKING:
    from kdcli.sources.teacher import TeacherSource

TEXT = "text.jsonl"
_FILTERS = frozenset({"min_tokens", "max_nll", "ended"})
_SECONDS_BETWEEN_SYNCS = 5.0


@dataclass(frozen=True)
class Sentence:
    """One answer of the teacher.

    Args:
        example: prompt and answer.
        row: the row its prompt comes from, or its number where it has no prompt.
        answer: which of the answers to the prompt.
        ended: whether the teacher ended it.
        nll: mean negative log-likelihood of its tokens under the teacher at temperature 1, in nats.
    """

    example: Example
    row: int
    answer: int
    ended: bool
    nll: float

    @property
    def targets(self) -> int:
        """Tokens of the answer, end token included."""
        return len(self.example.ids) - self.example.prompt_length


@dataclass(frozen=True)
class MadeText:
    """Everything a teacher was asked to write.

    Args:
        sentences: ordered by row and answer.
        folder: where they are kept; None if nowhere.
    """

    sentences: tuple[Sentence, ...]
    folder: Path | None


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
    assert ground.teacher is not None, "the source declares needs().teacher"
    prompts = _prompts(source, ground)
    if ground.folder is None:
        return MadeText(_ordered(_make(source, ground, prompts, {})), None)
    final = ground.folder / f"teacher-{text_key(source, ground, prompts)[:16]}"
    try:
        ground.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise durable.refused(error, ground.folder) from error
    with _alone(final.with_name(f".{final.name}.lock")):
        if not final.is_dir():
            _write(source, ground, prompts, final)
    durable.verify_folder(final)
    return MadeText(_ordered(_read(final / TEXT, prompts)), final)


def text_key(source: "TeacherSource", ground: Ground, prompts: dict[int, Example]) -> str:
    """Return the sha256 over everything the text follows from; filters only choose among it."""
    assert ground.teacher is not None, "somebody writes"
    parts = {
        "teacher": ground.teacher.digest,
        "options": source.model_dump(mode="json", exclude=set(_FILTERS)),
        "ids": ground.vocab,
        "longest": ground.longest,
        "precision": str(ground.autocast),
    }
    state = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    for row, one in prompts.items():
        state.update(repr((row, one.ids[: one.prompt_length])).encode())
    return state.hexdigest()


def _prompts(source: "TeacherSource", ground: Ground) -> dict[int, Example]:
    """Return number -> an example whose prompt is asked; without data, one that holds only the first token."""
    if source.prompts == "rows":
        return dict(enumerate(ground.dataset.examples))
    assert ground.teacher is not None, "somebody writes"
    bos = ground.teacher.tokenizer.bos_token_id
    first = bos if isinstance(bos, int) else ground.teacher.end_id
    return {row: Example((first,), 1, "", (), "no prompt") for row in range(len(ground.dataset))}


def _write(source: "TeacherSource", ground: Ground, prompts: dict[int, Example], final: Path) -> None:
    partial = final.with_name(f".{final.name}.jsonl")
    known = {(one.row, one.answer): one for one in _read(partial, prompts)} if partial.is_file() else {}
    try:
        with partial.open("ab") as file:
            file.write(b"\n" if file.tell() else b"")  # ends what a kill left half written
            synced = time.monotonic()
            for one in _make(source, ground, prompts, known):
                if (one.row, one.answer) in known:
                    continue
                known[one.row, one.answer] = one
                synced = _append(file, _line(one, ground), synced)
            os.fsync(file.fileno())
        body = b"".join(_line(one, ground) for one in _ordered(known.values()))
        durable.commit_folder(final, lambda folder: _fill(folder, body), {"kind": "text"})
        partial.unlink()
    except OSError as error:
        raise durable.refused(error, partial) from error


def _fill(folder: Path, body: bytes) -> None:
    (folder / TEXT).write_bytes(body)


def _append(file: BinaryIO, line: bytes, synced: float) -> float:
    file.write(line)
    file.flush()
    if time.monotonic() - synced < _SECONDS_BETWEEN_SYNCS:
        return synced
    os.fsync(file.fileno())
    return time.monotonic()


def _make(
    source: "TeacherSource", ground: Ground, prompts: dict[int, Example], known: dict[tuple[int, int], Sentence]
) -> Iterator[Sentence]:
    """Yield the answers that are not known, as they end."""
    teacher = ground.teacher
    assert teacher is not None, "somebody writes"
    speaking = teacher if ground.autocast is None else twin(teacher, ground.autocast)
    total, done, tokens, started = len(prompts) * source.answers, len(known), 0, time.monotonic()
    for row, number, answer in _answers(source, ground, prompts, set(known), speaking):
        example = continued(prompts[row], answer, teacher.end_id)
        nll = -response_log_probs(speaking, example, ground.vocab or teacher.vocab).double().mean().item()
        done, tokens = done + 1, tokens + len(answer.ids) + answer.ended
        ground.progress("the teacher writes", done, total, tokens / max(time.monotonic() - started, 1e-9))
        yield Sentence(example, row, number, answer.ended, nll)


def _answers(
    source: "TeacherSource", ground: Ground, prompts: dict[int, Example], known: set[tuple[int, int]],
    model: LanguageModel,
) -> Iterator[tuple[int, int, Answer]]:  # fmt: skip
    wanted = {row: [n for n in range(source.answers) if (row, n) not in known] for row in prompts}
    wanted = {row: numbers for row, numbers in wanted.items() if numbers}
    if source.decode == "beam":
        for row in wanted:
            prompt = prompts[row].ids[: prompts[row].prompt_length]
            found = beam_answers(
                model, prompt, width=source.beams, best=source.answers, ids=ground.vocab or model.vocab,
                most=min(source.max_new_tokens, room(prompts[row], ground) or source.max_new_tokens),
            )  # fmt: skip
            yield from ((row, number, answer) for number, answer in enumerate(found))
        return
    seeds = {draw_seed(source.seed, SAID, number): number for number in range(source.answers)}
    back = {number: seed for seed, number in seeds.items()}
    rows = list(wanted)
    asked = [
        Asked(
            prompts[row].ids[: prompts[row].prompt_length], row, tuple(back[n] for n in wanted[row]),
            room(prompts[row], ground),
        )
        for row in rows
    ]  # fmt: skip
    for place, seed, answer in answers(model, asked, source.sampling, rows=ground.vocab):
        yield rows[place], seeds[seed], answer


def _line(one: Sentence, ground: Ground) -> bytes:
    assert ground.teacher is not None, "somebody writes"
    tokenizer, cut = ground.teacher.tokenizer, one.example.prompt_length
    answer = tokenizer.decode(list(one.example.ids[cut:]), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    entry = {
        "prompt": one.example.prompt, "response": str(answer), "row": one.row, "answer": one.answer,
        "ended": one.ended, "nll": one.nll, "prompt_tokens": cut, "ids": list(one.example.ids),
    }  # fmt: skip
    return (json.dumps({**entry, "check": _check(entry)}, ensure_ascii=False) + "\n").encode()


def _check(entry: dict[str, Any]) -> str:
    rest = {name: value for name, value in entry.items() if name != "check"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:8]


def _read(path: Path, prompts: dict[int, Example]) -> list[Sentence]:
    """Return the sentences of a file; a damaged line counts as none."""
    found = []
    for raw in path.read_bytes().split(b"\n"):
        try:
            entry = json.loads(raw)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict) and entry.get("check") == _check(entry):
            example = replace(prompts[entry["row"]], ids=tuple(entry["ids"]), prompt_length=entry["prompt_tokens"])
            found.append(Sentence(example, entry["row"], entry["answer"], entry["ended"], entry["nll"]))
    return found


def _ordered(sentences: Iterable[Sentence]) -> tuple[Sentence, ...]:
    return tuple(sorted(sentences, key=lambda one: (one.row, one.answer)))


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other process holds the file, and hold it."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        fcntl.lockf(handle, fcntl.LOCK_EX)
    except OSError as error:
        raise durable.refused(error, path) from error
    try:
        yield
    finally:
        os.close(handle)
