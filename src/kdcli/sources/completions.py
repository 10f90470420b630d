"""The file of a teacher's completions: one checksummed line each."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from kdcli.data.tokenize import Example, decode_after
from kdcli.storage.jsonl import Entry, read_lines


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


def entry_of(one: TeacherCompletion, tokenizer: PreTrainedTokenizerBase) -> Entry:
    """Return the entry that holds a sentence."""
    return {
        "prompt": one.example.prompt, "response": completion_text(one, tokenizer), "row": one.row, "answer": one.answer,
        "ended": one.ended, "nll": one.nll, "prompt_tokens": one.example.prompt_length, "ids": list(one.example.ids),
    }  # fmt: skip


def place_of(entry: Entry) -> tuple[int, int]:
    """Return row and answer of an entry: what it is found by."""
    return entry["row"], entry["answer"]


def read_completions(path: Path, prompts: Mapping[int, Example]) -> list[TeacherCompletion]:
    """Return the sentences of a file; a damaged line counts as none."""
    return [_completion(entry, prompts) for _, entry in read_lines(path)]


def ordered(sentences: Iterable[TeacherCompletion]) -> tuple[TeacherCompletion, ...]:
    """Return sentences by row and answer."""
    return tuple(sorted(sentences, key=lambda one: (one.row, one.answer)))


def _completion(entry: Entry, prompts: Mapping[int, Example]) -> TeacherCompletion:
    ids, cut = tuple(entry["ids"]), entry["prompt_tokens"]
    example = replace(prompts[entry["row"]], ids=ids, prompt_length=cut, response="", asked=())
    return TeacherCompletion(example, entry["row"], entry["answer"], entry["ended"], entry["nll"])
