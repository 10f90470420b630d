"""Sources of answers: a model in this process, or a server."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

from kdcli.config.sections import GenerationConfig, ServerConfig
from kdcli.end_tokens import UNTOLD
from kdcli.evaluation.answers import Answer, Prompt
from kdcli.events import Event, Report
from kdcli.generation import Completion, GenerationRequest, answers
from kdcli.models.devices import Device
from kdcli.models.load import LanguageModel, cast_copy
from kdcli.models.tokenizer import answer_key
from kdcli.remote.address import address_of, served_identity
from kdcli.remote.client import Client, Request
from kdcli.remote.schema import read_completion, request_seed
from kdcli.text import one_line


class LocalAnswers:
    """Answers of a loaded model, in the precision of the device's computations.

    Args:
        model: any loaded model; its parameters stay as they are.
        generation: length, temperature, nucleus mass and batch size.
        device: where and in what precision it computes.
    """

    def __init__(self, model: LanguageModel, generation: GenerationConfig, device: Device) -> None:
        self._model = model
        self._generation = generation
        self._dtype = device.autocast

    @property
    def identity(self) -> str:
        """Weights, precision, vocabulary, the tokens that end an answer, and those that are no words."""
        dtype, model = self._dtype or self._model.head.weight.dtype, self._model
        return f"{model.digest} {dtype} {model.vocab} {answer_key(model.tokenizer, model.ends)}"

    def answers_for(self, questions: Sequence[Prompt], report: Report) -> Iterator[Answer]:
        """Yield one answer per question and seed, as they end.

        Args:
            questions: what is to be answered; each prompt is read once.
            report: called with the number of answers and tokens per second.

        Raises:
            InputError: an empty prompt, one that fills the model's context, or a recurrent model.
            NumericsError: the model's logits are not finite.
        """
        asked = [
            GenerationRequest(question.ids, question.number, question.seeds, images=question.images)
            for question in questions
        ]
        pace = _Pace(sum(len(question.seeds) for question in questions), report)
        model = self._model if self._dtype is None else cast_copy(self._model, self._dtype)
        for place, seed, answer in answers(model, asked, self._generation, rows=model.vocab, report=pace.count):
            pace.done += 1
            yield Answer(questions[place].number, seed, self._text(answer), answer)

    def _text(self, answer: Completion) -> str:
        text = self._model.tokenizer.decode(
            list(answer.ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(text).strip()


class _Pace:
    """Reports the progress and speed of generation."""

    def __init__(self, total: int, report: Report) -> None:
        self.done = 0
        self._total, self._report, self._tokens = total, report, 0
        self._started = time.monotonic()
        report(Event("stage", "answering", total=total))

    def count(self, tokens: int) -> None:
        """Take in tokens just generated."""
        self._tokens += tokens
        rate = self._tokens / max(time.monotonic() - self._started, 1e-9)
        values = {"tokens": self._tokens, "tokens/s": rate}
        self._report(Event("progress", "answering", done=self.done, total=self._total, values=values))


# A server as one more source of answers.


class ServedAnswers:
    """Answers of a model that a server holds, asked for at ``/completions``.

    Every request carries a seed that follows from sampling seed and example, so that a server which
    keeps its promise gives the same answers whatever else it is busy with.

    Args:
        server: address, model and patience.
        generation: length, temperature and nucleus mass.

    Raises:
        KDError: an address no server can have, or a model that cannot be determined.
    """

    def __init__(self, server: ServerConfig, generation: GenerationConfig) -> None:
        self._client = Client(server)
        self._generation = generation
        self._model = self._client.model()

    @property
    def identity(self) -> str:
        """The server and its model."""
        return _identity(self._model, self._client.connection.address.url)

    def answers_for(self, questions: Sequence[Prompt], report: Report) -> Iterator[Answer]:
        """Yield one answer per question and seed, as they come.

        Args:
            questions: what is to be answered.
            report: called with the number of answers.

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
            yield Answer(question.number, seed, written.text.strip(), Completion((), UNTOLD if written.ended else None))

    def _body(self, question: Prompt, seed: int) -> dict[str, Any]:
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
    return served_identity(one_line(model, 80), url)
