"""What a server says of a text it has just written: its words, their numbers and their likelihood."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

_MARK = "token_id:"
_SLACK = 1e-2


class _Reply(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class _Likelihoods(_Reply):
    tokens: tuple[str, ...] | None = None
    token_logprobs: tuple[float | None, ...] | None = None


class _Choice(_Reply):
    text: str
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    logprobs: _Likelihoods | None = None


class _Completion(_Reply):
    choices: tuple[_Choice, ...] = Field(min_length=1)


@dataclass(frozen=True)
class Spoken:
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


def read_spoken(raw: bytes | str) -> Spoken:
    """Read a reply of ``/completions`` that was asked for log-probabilities; the first choice counts.

    Raises:
        ValueError: it is no such reply, its log-probabilities are none, or it is empty without having ended.

    >>> read_spoken('{"choices": [{"text": "b", "finish_reason": "stop", "logprobs": {"token_logprobs": [-1, -2]}}]}')
    Spoken(text='b', ended=True, nll=1.5, ids=None, stop=None)
    """
    first = _Completion.model_validate_json(raw).choices[0]
    ended = first.finish_reason == "stop"
    if not first.text and not ended:
        raise ValueError("the text is empty, and the model has not ended it")
    told = first.logprobs
    nll = _mean_nll(told.token_logprobs) if told is not None and told.token_logprobs else None
    ids = _numbers(told.tokens) if told is not None and told.tokens else None
    stop = first.stop_reason if isinstance(first.stop_reason, int) else None
    return Spoken(first.text, ended, nll, ids, stop)


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
