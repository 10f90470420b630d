"""The file of a teacher's completions: one checksummed line each."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from kdcli.data.tokenize import Example, decode_after
from kdcli.storage import stored


@dataclass(frozen=True)
class TeacherCompletion:
    """One answer of the teacher.

    Args:
        example: prompt and answer.
        row: the row its prompt comes from, or its number where it has no prompt.
        answer: which of the answers to the prompt.
        ended: whether the teacher ended it.
        nll: mean negative log-likelihood of its tokens under the teacher at temperature 1, in nats; None where
            the teacher does not tell.
    """

    example: Example
    row: int
    answer: int
    ended: bool
    nll: float | None

    @property
    def targets(self) -> int:
        """Tokens of the answer, end token included."""
        return len(self.example.ids) - self.example.prompt_length


def completion_text(one: TeacherCompletion, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return an answer as text, without special tokens and without the token that ended it."""
    cut, end = one.example.prompt_length, len(one.example.ids) - one.ended
    return decode_after(tokenizer, one.example.ids[:cut], one.example.ids[cut:end])


def line_of(one: TeacherCompletion, tokenizer: PreTrainedTokenizerBase) -> bytes:
    """Return the line that holds a sentence."""
    entry = {
        "prompt": one.example.prompt, "response": completion_text(one, tokenizer), "row": one.row, "answer": one.answer,
        "ended": one.ended, "nll": one.nll, "prompt_tokens": one.example.prompt_length, "ids": list(one.example.ids),
    }  # fmt: skip
    return (json.dumps({**entry, "check": _check(entry)}, ensure_ascii=False) + "\n").encode()


def read_completions(path: Path, prompts: Mapping[int, Example]) -> list[TeacherCompletion]:
    """Return the sentences of a file; a damaged line counts as none."""
    found = []
    for raw in path.read_bytes().split(b"\n"):
        try:
            entry = stored.parse(raw)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("check") == _check(entry):
            ids, cut = tuple(entry["ids"]), entry["prompt_tokens"]
            example = replace(prompts[entry["row"]], ids=ids, prompt_length=cut, response="", asked=())
            found.append(TeacherCompletion(example, entry["row"], entry["answer"], entry["ended"], entry["nll"]))
    return found


def ordered(sentences: Iterable[TeacherCompletion]) -> tuple[TeacherCompletion, ...]:
    """Return sentences by row and answer."""
    return tuple(sorted(sentences, key=lambda one: (one.row, one.answer)))


def _check(entry: dict[str, Any]) -> str:
    rest = {name: value for name, value in entry.items() if name != "check"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:8]
