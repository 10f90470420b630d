"""Requests and replies of the OpenAI protocol; unknown fields are ignored, missing ones are errors."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from kdcli.text import one_line


def request_seed(seed: int, example: int) -> int:
    """Return the seed of one request, below 2**31, another one for every sampling seed and example.

    >>> request_seed(10, 0) == request_seed(10, 0), request_seed(10, 0) == request_seed(0, 10)
    (True, False)
    """
    return int.from_bytes(hashlib.sha256(f"{seed}:{example}".encode()).digest()[:4], "big") >> 1


class _Reply(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class _Usage(_Reply):
    completion_tokens: int | None = Field(default=None, ge=0)


class _Choice(_Reply):
    text: str
    finish_reason: str | None = None


class _Message(_Reply):
    content: str


class _Turn(_Reply):
    message: _Message
    finish_reason: str | None = None


class _Completion(_Reply):
    choices: tuple[_Choice, ...] = Field(min_length=1)
    usage: _Usage | None = None


class _Chat(_Reply):
    choices: tuple[_Turn, ...] = Field(min_length=1)
    usage: _Usage | None = None


class _Name(_Reply):
    id: str = Field(min_length=1)


class _Models(_Reply):
    data: tuple[_Name, ...]


@dataclass(frozen=True)
class CompletionReply:
    """One answer of a server.

    Args:
        text: what it wrote.
        ended: whether the model ended it; False where it was cut at a length.
        tokens: tokens generated; 0 if the server does not count them.
    """

    text: str
    ended: bool
    tokens: int = 0


def read_completion(raw: bytes | str) -> CompletionReply:
    """Read a reply of ``/completions``; the first choice counts.

    Raises:
        ValueError: it is no such reply.

    >>> read_completion('{"choices": [{"text": " b", "finish_reason": "length"}]}')
    CompletionReply(text=' b', ended=False, tokens=0)
    """
    reply = _Completion.model_validate_json(raw)
    first = reply.choices[0]
    return CompletionReply(first.text, first.finish_reason == "stop", _tokens(reply.usage))


def read_chat(raw: bytes | str) -> CompletionReply:
    """Read a reply of ``/chat/completions``; the first choice counts.

    Raises:
        ValueError: it is no such reply.

    >>> read_chat('{"choices": [{"message": {"content": "b"}, "finish_reason": "stop"}]}').ended
    True
    """
    reply = _Chat.model_validate_json(raw)
    first = reply.choices[0]
    return CompletionReply(first.message.content, first.finish_reason == "stop", _tokens(reply.usage))


def read_models(raw: bytes | str) -> tuple[str, ...]:
    """Read a reply of ``/models``: the names of what is served.

    Raises:
        ValueError: it is no such reply.

    >>> read_models('{"data": [{"id": "a", "owned_by": "me"}]}')
    ('a',)
    """
    return tuple(entry.id for entry in _Models.model_validate_json(raw).data)


def _tokens(usage: _Usage | None) -> int:
    return (usage.completion_tokens if usage else None) or 0


# What a server says of a given text: at each place its likeliest tokens and their log-probabilities.


TopLogprobs = dict[int, float]
"""Token id -> log-probability."""

_SLACK = 1e-2


class _Entry(_Reply):
    logprob: float
    decoded_token: str | None = None


class _Echo(_Reply):
    tokens: tuple[str, ...]
    top_logprobs: tuple[dict[str, float] | None, ...]


class _PromptChoice(_Reply):
    prompt_logprobs: tuple[dict[str, _Entry] | None, ...] | None = None
    logprobs: _Echo | None = None


class _Answer(_Reply):
    choices: tuple[_PromptChoice, ...] = Field(min_length=1)


@dataclass(frozen=True)
class ReplyParser:
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

    def __call__(self, raw: bytes | str) -> list[TopLogprobs]:
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

    def _check_own(self, places: Sequence[TopLogprobs]) -> None:
        """The token that stands in the text is always among those listed."""
        for known, own in zip(places[1:], self.ids[1:], strict=True):
            if own not in known:
                raise ValueError(f"token {own} of the text is not listed at its place: another tokenizer")

    def _check_echo(self, tokens: Sequence[str]) -> None:
        for text, own in zip(tokens, self.ids, strict=False):
            found = self.id_of(text)
            if found is not None and found != own:
                raise ValueError(f'it reads "{one_line(text, 20)}" where token {own} was sent: another tokenizer')

    def _by_text(self, entry: dict[str, float] | None) -> TopLogprobs:
        found: TopLogprobs = {}
        for text, value in (entry or {}).items():
            number = self.id_of(text)
            if number is not None:
                found[number] = value
        return found

    def _checked(self, known: TopLogprobs) -> TopLogprobs:
        top = sorted(known.items(), key=lambda item: (-item[1], item[0]))[: self.top_k]
        if len(top) < self.top_k:
            raise ValueError(f"it knows {len(top)} tokens at a place where {self.top_k} were asked for")
        if any(not 0 <= number < self.vocab for number, _ in top):
            raise ValueError(f"it names a token beyond the student's {self.vocab:,}: another tokenizer")
        mass = math.fsum(math.exp(min(value, 1.0)) for _, value in top)
        if not mass <= 1 + _SLACK:
            raise ValueError(f"the probabilities of a place add up to {mass:.3g}")
        return dict(top)


def token_texts(raw: bytes | str) -> dict[int, str]:
    """Return how a server writes the tokens that it names by number.

    >>> token_texts('{"choices": [{"prompt_logprobs": [null, {"5": {"logprob": -1, "decoded_token": " a"}}]}]}')
    {5: ' a'}
    """
    places = _Answer.model_validate_json(raw).choices[0].prompt_logprobs or ()
    named = [(number, entry.decoded_token) for place in places for number, entry in (place or {}).items()]
    return {int(number): text for number, text in named if text is not None}


def _by_id(entry: dict[str, _Entry] | None) -> TopLogprobs:
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


# What a server says of a text it has just written: its words, their numbers and their likelihood.


_MARK = "token_id:"


class _Likelihoods(_Reply):
    tokens: tuple[str, ...] | None = None
    token_logprobs: tuple[float | None, ...] | None = None


class _ScoredChoice(_Reply):
    text: str
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    logprobs: _Likelihoods | None = None


class _ScoredCompletion(_Reply):
    choices: tuple[_ScoredChoice, ...] = Field(min_length=1)


@dataclass(frozen=True)
class LogProbReply:
    """One text of a server.

    Args:
        text: its words.
        ended: whether the model ended it; False where it was cut at a length.
        nll: mean negative log-likelihood of its tokens, in nats; None where the server does not tell.
        ids: its tokens by number; None where the server does not tell.
        stop: the token that ended it; None where the server does not tell.
    """

    text: str
    ended: bool
    nll: float | None = None
    ids: tuple[int, ...] | None = None
    stop: int | None = None


def read_scored(raw: bytes | str) -> LogProbReply:
    """Read a reply of ``/completions`` that was asked for log-probabilities; the first choice counts.

    Raises:
        ValueError: it is no such reply, its log-probabilities are none, or it is empty without having ended.

    >>> read_scored('{"choices": [{"text": "b", "finish_reason": "stop", "logprobs": {"token_logprobs": [-1, -2]}}]}')
    LogProbReply(text='b', ended=True, nll=1.5, ids=None, stop=None)
    """
    first = _ScoredCompletion.model_validate_json(raw).choices[0]
    ended = first.finish_reason == "stop"
    if not first.text and not ended:
        raise ValueError("the text is empty, and the model has not ended it")
    scored = first.logprobs
    nll = _mean_nll(scored.token_logprobs) if scored is not None and scored.token_logprobs else None
    ids = _numbers(scored.tokens) if scored is not None and scored.tokens else None
    stop = first.stop_reason if isinstance(first.stop_reason, int) else None
    return LogProbReply(first.text, ended, nll, ids, stop)


def _mean_nll(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    if len(known) < len(values) or any(not math.isfinite(value) or value > _SLACK for value in known):
        raise ValueError("a log-probability of the text is missing, not finite, or above 0")
    return max(-math.fsum(known) / len(known), 0.0)


def _numbers(names: Sequence[str]) -> tuple[int, ...] | None:
    """Return tokens written as ``token_id:5``; None where one is not."""
    numbers = [name.removeprefix(_MARK) for name in names if name.startswith(_MARK)]
    whole = len(numbers) == len(names) and all(number.isdecimal() and number.isascii() for number in numbers)
    return tuple(int(number) for number in numbers) if whole else None
