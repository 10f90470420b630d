"""One answer on its way."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from kdcli.end_tokens import EndTokens
from kdcli.generate.draws import draws_per_token, stream


@dataclass
class Row:
    """One answer on its way.

    Args:
        place: the prompt's position in what was asked.
        prompt: its tokens.
        example: its number in the draws.
        seed: sampling seed.
        stream: random bits of this answer, as they are before its next token.
        most: tokens it may have, beside the bound that all answers share.
        said: tokens so far, without the end token.
        end: the end token, if the model ended it.
        block: where in the answer the block begins that is still open; what lies before was read alone.
        settled: how many tokens are final, end token included; only counted where a batch proposes.
    """

    place: int
    prompt: Sequence[int]
    example: int
    seed: int
    stream: np.random.Philox
    most: int | None = None
    said: list[int] = field(default_factory=list)
    end: int | None = None
    block: int = 0
    settled: int = 0

    @classmethod
    def waiting(cls, place: int, prompt: Sequence[int], example: int, seed: int, most: int | None = None) -> "Row":
        """Return an answer that has not begun."""
        return cls(place, prompt, example, seed, stream(seed, example), most)

    @property
    def ended(self) -> bool:
        """Whether the model ended it."""
        return self.end is not None

    @property
    def tokens(self) -> list[int]:
        """What was said, end token included."""
        return self.said if self.end is None else [*self.said, self.end]

    def take(self, token: int, ends: EndTokens) -> None:
        """Say one more token."""
        if token in ends:
            self.end = token
        else:
            self.said.append(token)

    def correct(self, at: int, token: int, ends: EndTokens, ids: int) -> None:
        """Say another token in place of an earlier one, and forget what came after that.

        Args:
            at: which token of the answer.
            token: what is said there.
            ends: tokens that end an answer.
            ids: entries of the vocabulary, from which follows how many numbers a token takes.
        """
        self.end = None
        del self.said[at:]
        self.stream = self.stream_before(at + 1, ids)
        self.take(token, ends)

    def stream_before(self, token: int, ids: int) -> np.random.Philox:
        """Return the random bits as they are before a token of the answer."""
        return stream(self.seed, self.example, token * draws_per_token(ids))
