"""Token sequences, and what two sets of them have in common."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Example:
    """One sequence of tokens.

    Args:
        ids: prompt, response and, unless the response was cut, one end token.
        prompt_length: how many of the ids are prompt; at least 1.
        prompt: the prompt as text, template and all; empty for plain text.
        references: the answers as the data give them.
        where: file and line.
        choices: answers to choose from, as the data give them and unchecked; None if there are none.
        answer: the right one or its place, likewise; None if the first reference is meant.
        response: the response as text, whole, template and all; empty where a model wrote it.
        asked: tokens of the prompt by itself, where they are others than the first ``prompt_length`` ids; else empty.
    """

    ids: tuple[int, ...]
    prompt_length: int
    prompt: str
    references: tuple[str, ...]
    where: str
    choices: Any = None
    answer: Any = None
    response: str = ""
    asked: tuple[int, ...] = ()

    @property
    def question(self) -> tuple[int, ...]:
        """The prompt's tokens as a model is asked them, before anything is known to follow."""
        return self.asked or self.ids[: self.prompt_length]


@dataclass(frozen=True)
class TokenDataset:
    """Sequences ready for batches.

    Args:
        examples: the sequences, in file order.
        notes: what was detected, cut and left out, a sentence each.
        files: sha256 over the files' bytes.
        template: eight hex digits that name the texts of the templates rows were put into.
    """

    examples: tuple[Example, ...]
    notes: tuple[str, ...] = ()
    files: str = ""
    template: str = ""

    def __len__(self) -> int:
        return len(self.examples)

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each sequence, prompt and response together."""
        return tuple(len(example.ids) for example in self.examples)

    @cached_property
    def without_prompt(self) -> int:
        """Rows that have no prompt to answer, such as plain texts."""
        return sum(not example.prompt for example in self.examples)

    @cached_property
    def targets(self) -> int:
        """Response tokens in all, end tokens included."""
        return sum(len(example.ids) - example.prompt_length for example in self.examples)

    @cached_property
    def digest(self) -> str:
        """Return the sha256 over the token ids and prompt lengths."""
        state = hashlib.sha256()
        for example in self.examples:
            numbers = [len(example.ids), example.prompt_length, *example.ids]
            state.update(np.asarray(numbers, dtype="<i8").tobytes())
        return state.hexdigest()


def overlap(train: TokenDataset, held_out: TokenDataset) -> int:
    """Count held-out prompts that occur in the training rows; plain texts are compared whole.

    >>> one, other = (Example((1, 2), 1, f"say {letter}:", (letter,), "") for letter in "ab")
    >>> overlap(TokenDataset((one,)), TokenDataset((one, other)))
    1
    """
    seen = {_essence(example) for example in train.examples}
    return sum(_essence(example) in seen for example in held_out.examples)


def overlap_note(train: TokenDataset, held_out: TokenDataset) -> str | None:
    """Return the warning for held-out prompts that occur in the training rows, or None."""
    count = overlap(train, held_out)
    if not count:
        return None
    return f"DATA-18: {count:,} of {len(held_out):,} held-out prompts occur in the training rows"


def _essence(example: Example) -> str:
    return " ".join((example.prompt or example.references[0]).split())
