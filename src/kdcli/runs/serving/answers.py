"""A server as one more source of answers."""

import hashlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

from kdcli.config import GenerationConfig, ServerConfig
from kdcli.end_tokens import UNTOLD
from kdcli.engine.events import Event, Report
from kdcli.generate import Answer
from kdcli.runs.evaluation.answering import Question, Said
from kdcli.runs.serving.address import address_of
from kdcli.runs.serving.client import Client, Request
from kdcli.runs.serving.wire import read_completion
from kdcli.text import one_line


class ServedAnswers:
    """Answers of a model that a server holds, asked for at ``/completions``.

    Every request carries a seed that follows from sampling seed and example, so that a server which
    keeps its promise gives the same answers whatever else it is busy with.

    Args:
        server: address, model and patience.
        generation: length, temperature and nucleus mass.

    Raises:
        KDError: an address no server can have, or a model that cannot be told.
    """

    def __init__(self, server: ServerConfig, generation: GenerationConfig) -> None:
        self._client = Client(server)
        self._generation = generation
        self._model = self._client.model()

    @property
    def identity(self) -> str:
        """The server and its model."""
        return _identity(self._model, self._client.connection.address.url)

    def answers_for(self, questions: Sequence[Question], report: Report) -> Iterator[Said]:
        """Yield one answer per question and seed, as they come.

        Args:
            questions: what is to be answered.
            report: told how many answers there are.

        Raises:
            KDError: SERVE-02 to SERVE-07.
        """
        asked = [(question, seed) for question in questions for seed in question.seeds]
        requests = [Request("completions", self._body(question, seed)) for question, seed in asked]
        report(Event("stage", "answering", total=len(asked)))
        started, tokens = time.monotonic(), 0
        answers = self._client.ask(requests, read_completion)
        for done, (place, written) in enumerate(answers, start=1):
            question, seed = asked[place]
            tokens += written.tokens
            rate = tokens / max(time.monotonic() - started, 1e-9)
            values = {"tokens/s": rate} if tokens else {}
            report(Event("progress", "answering", done=done, total=len(asked), values=values))
            yield Said(question.number, seed, written.text.strip(), Answer((), UNTOLD if written.ended else None))

    def _body(self, question: Question, seed: int) -> dict[str, Any]:
        settings = self._generation
        return {
            "model": self._model,
            "prompt": question.text or [*question.ids],
            "max_tokens": settings.max_new_tokens,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "seed": request_seed(seed, question.number),
            "n": 1,
            "stream": False,
        }


def served_by(server: ServerConfig) -> dict[str, str]:
    """Return what a protocol says about a server; nothing without one.

    Args:
        server: settings whose model's name is known.

    >>> served_by(ServerConfig(url="localhost:8000", model="m")), served_by(ServerConfig())
    ({'server': 'm at http://localhost:8000/v1'}, {})
    """
    return {} if server.url is None else {"server": _identity(str(server.model), address_of(server).url)}


def _identity(model: str, url: str) -> str:
    return f"{one_line(model, 80)} at {url}"


def request_seed(seed: int, example: int) -> int:
    """Return the seed of one request, below 2**31, another one for every sampling seed and example.

    >>> request_seed(10, 0) == request_seed(10, 0), request_seed(10, 0) == request_seed(0, 10)
    (True, False)
    """
    return int.from_bytes(hashlib.sha256(f"{seed}:{example}".encode()).digest()[:4], "big") >> 1
