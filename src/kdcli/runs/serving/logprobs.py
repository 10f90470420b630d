"""What a server says of a given text: at each place its likeliest tokens and their log-probabilities."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from kdcli.text import one_line

Known = dict[int, float]
"""Token id -> log-probability."""

_SLACK = 1e-2


class _Reply(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class _Entry(_Reply):
    logprob: float
    decoded_token: str | None = None


class _Echo(_Reply):
    tokens: tuple[str, ...]
    top_logprobs: tuple[dict[str, float] | None, ...]


class _Choice(_Reply):
    prompt_logprobs: tuple[dict[str, _Entry] | None, ...] | None = None
    logprobs: _Echo | None = None


class _Answer(_Reply):
    choices: tuple[_Choice, ...] = Field(min_length=1)


@dataclass(frozen=True)
class Reader:
    """Reads the reply about one sequence.

    Args:
        ids: the sequence that was sent.
        top_k: tokens wanted at each place.
        vocab: real ids; a larger one shows another tokenizer.
        id_of: the id that a token's text stands for; None where it may be several.
    """

    ids: Sequence[int]
    top_k: int
    vocab: int
    id_of: Callable[[str], int | None]

    def __call__(self, raw: bytes | str) -> list[Known]:
        """Return what is known of each token after the first, given those before it.

        Raises:
            ValueError: the reply is not about this sequence, or knows too little.
        """
        choice = _Answer.model_validate_json(raw).choices[0]
        if choice.prompt_logprobs is not None:
            places = [_by_id(entry) for entry in choice.prompt_logprobs]
        elif choice.logprobs is not None:
            places = [self._by_text(entry) for entry in choice.logprobs.top_logprobs[: len(self.ids)]]
            self._check_echo(choice.logprobs.tokens)
        else:
            raise ValueError("it holds no log-probabilities of the prompt")
        if len(places) != len(self.ids):
            raise ValueError(f"it reads {len(places)} tokens where {len(self.ids)} were sent: another tokenizer")
        if choice.prompt_logprobs is not None:
            self._check_own(places)
        return [self._checked(known) for known in places[1:]]

    def _check_own(self, places: Sequence[Known]) -> None:
        """The token that stands in the text is always among those listed."""
        for known, own in zip(places[1:], self.ids[1:], strict=True):
            if own not in known:
                raise ValueError(f"token {own} of the text is not listed at its place: another tokenizer")

    def _check_echo(self, tokens: Sequence[str]) -> None:
        for text, own in zip(tokens, self.ids, strict=False):
            found = self.id_of(text)
            if found is not None and found != own:
                raise ValueError(f'it reads "{one_line(text, 20)}" where token {own} was sent: another tokenizer')

    def _by_text(self, entry: dict[str, float] | None) -> Known:
        found: Known = {}
        for text, value in (entry or {}).items():
            number = self.id_of(text)
            if number is not None:
                found[number] = value
        return found

    def _checked(self, known: Known) -> Known:
        top = sorted(known.items(), key=lambda item: (-item[1], item[0]))[: self.top_k]
        if len(top) < self.top_k:
            raise ValueError(f"it knows {len(top)} tokens at a place where {self.top_k} were asked for")
        if any(not 0 <= number < self.vocab for number, _ in top):
            raise ValueError(f"it names a token beyond the student's {self.vocab:,}: another tokenizer")
        mass = math.fsum(math.exp(min(value, 1.0)) for _, value in top)
        if not mass <= 1 + _SLACK:
            raise ValueError(f"the probabilities of a place add up to {mass:.3g}")
        return dict(top)


def spelled(raw: bytes | str) -> dict[int, str]:
    """Return how a server writes the tokens that it names by number.

    >>> spelled('{"choices": [{"prompt_logprobs": [null, {"5": {"logprob": -1, "decoded_token": " a"}}]}]}')
    {5: ' a'}
    """
    places = _Answer.model_validate_json(raw).choices[0].prompt_logprobs or ()
    named = [(number, entry.decoded_token) for place in places for number, entry in (place or {}).items()]
    return {int(number): text for number, text in named if text is not None}


def _by_id(entry: dict[str, _Entry] | None) -> Known:
    return {int(number): value.logprob for number, value in (entry or {}).items()}


def bodies(model: str, ids: Sequence[int], top_k: int) -> dict[str, dict[str, Any]]:
    """Return the two forms of the question: vLLM's, and the plain one.

    Args:
        model: its name on the server.
        ids: the sequence.
        top_k: tokens wanted at each place.
    """
    common = {"model": model, "prompt": [*ids], "max_tokens": 1, "temperature": 0.0, "n": 1, "stream": False}
    plain = {"echo": True, "logprobs": top_k, "return_tokens_as_token_ids": True}
    return {"prompt_logprobs": common | {"prompt_logprobs": top_k}, "echo": common | plain}
