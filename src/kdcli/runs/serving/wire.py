"""What a server may answer; everything else in a reply is ignored, anything missing is nonsense."""

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field


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
class Written:
    """One answer of a server.

    Args:
        text: what it wrote.
        ended: whether the model ended it; False where it was cut at a length.
        tokens: tokens generated; 0 if the server does not count them.
    """

    text: str
    ended: bool
    tokens: int = 0


def read_completion(raw: bytes | str) -> Written:
    """Read a reply of ``/completions``; the first choice counts.

    Raises:
        ValueError: it is no such reply.

    >>> read_completion('{"choices": [{"text": " b", "finish_reason": "length"}]}')
    Written(text=' b', ended=False, tokens=0)
    """
    reply = _Completion.model_validate_json(raw)
    first = reply.choices[0]
    return Written(first.text, first.finish_reason == "stop", _tokens(reply.usage))


def read_chat(raw: bytes | str) -> Written:
    """Read a reply of ``/chat/completions``; the first choice counts.

    Raises:
        ValueError: it is no such reply.

    >>> read_chat('{"choices": [{"message": {"content": "b"}, "finish_reason": "stop"}]}').ended
    True
    """
    reply = _Chat.model_validate_json(raw)
    first = reply.choices[0]
    return Written(first.message.content, first.finish_reason == "stop", _tokens(reply.usage))


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
