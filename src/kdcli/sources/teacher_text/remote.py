"""Teacher text from a server."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from kdcli.config.sections import ServerConfig
from kdcli.data.tokenize import Example, follow, refuse_rowless, without_prefix
from kdcli.errors import InputError, UsageError
from kdcli.generation import Completion
from kdcli.loading.info import ModelInfo
from kdcli.remote.client import Client, Request
from kdcli.remote.schema import LogProbReply, read_scored, request_seed
from kdcli.sources.base import SourceContext, Wanted
from kdcli.sources.completions import TeacherCompletion
from kdcli.sources.sequences import max_completion
from kdcli.sources.teacher_text.options import TeacherTextOptions


class RemoteGenerator:
    """Asks a server for answers at ``/completions``, each with a seed of its own.

    The seed follows from (seed, row, answer), so that a server that keeps its promise writes the same text whatever
    else it is busy with. The words are cut into the student's tokens, unless prompts are sent as token ids and the
    server gives ids back: then the tokens are those that it wrote.

    Args:
        server: address, model's name and patience.
        reader: the student, whose tokenizer reads the words.

    Raises:
        KDError: an address no server can have, or a model that cannot be determined.
    """

    def __init__(self, server: ServerConfig, reader: ModelInfo) -> None:
        self._client, self._send = Client(server), server.send
        self._model = self._client.model()
        self.tokenizer: PreTrainedTokenizerBase = reader.tokenizer
        self.ends = reader.ends
        url = self._client.connection.address.url
        self.digest = f"{self._model} at {url}, asked with {self._send}, read by {reader.tokenizer_digest[:16]}"
        self.precision = "the server's"

    def write(
        self, source: TeacherTextOptions, context: SourceContext, prompts: Mapping[int, Example], wanted: Wanted
    ) -> Iterator[TeacherCompletion]:
        """Yield the answers wanted, as they come.

        Raises:
            UsageError: SERVE-11, a prompt without words where words are sent.
            KDError: SERVE-02 to SERVE-07; answers that came before are yielded.
        """
        asked = [(row, number) for row, numbers in wanted.items() for number in numbers]
        if not asked:
            return
        if self._send == "text":
            _check_words(prompts[row] for row in wanted)
        likely, known = self._first(source, context, prompts, asked[0])
        yield known
        body = partial(self._body, source, context, likely=likely)
        requests = [Request("completions", body(prompts[row], row, number)) for row, number in asked[1:]]
        for place, reply in self._client.ask(requests, read_scored):
            row, number = asked[1 + place]
            yield self._sentence(prompts[row], row, number, reply, context)

    def _first(
        self, source: TeacherTextOptions, context: SourceContext, prompts: Mapping[int, Example], asked: tuple[int, int]
    ) -> tuple[bool, TeacherCompletion]:
        """Ask for the first answer, with log-probabilities; without, where the server refuses them."""
        row, number = asked
        refused: InputError | None = None
        for likely in (True, False):
            request = Request("completions", self._body(source, context, prompts[row], row, number, likely=likely))
            try:
                ((_, reply),) = self._client.ask([request], read_scored)
            except InputError as error:
                if error.code != "SERVE-05":
                    raise
                refused = refused or error
                continue
            return likely, self._sentence(prompts[row], row, number, reply, context)
        assert refused is not None, "two forms were tried"
        raise refused

    def _body(
        self,
        source: TeacherTextOptions,
        context: SourceContext,
        prompt: Example,
        row: int,
        number: int,
        *,
        likely: bool,
    ) -> dict[str, Any]:
        sampling, left = source.sampling, max_completion(prompt, context) or source.max_new_tokens
        logprobs = {"logprobs": 1, **({"return_tokens_as_token_ids": True} if self._send == "ids" else {})}
        return {
            "model": self._model,
            "prompt": without_prefix(self.tokenizer, prompt.prompt) if self._send == "text" else [*prompt.question],
            "max_tokens": min(source.max_new_tokens, left),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": request_seed(request_seed(source.seed, number), row),
            "n": 1,
            "stream": False,
            **(logprobs if likely else {}),
        }

    def _sentence(
        self, prompt: Example, row: int, number: int, reply: LogProbReply, context: SourceContext
    ) -> TeacherCompletion:
        asked, answer = self._answer(prompt, reply, context)
        ids, ended = (*asked, *answer.tokens), answer.ended
        if context.longest is not None and len(ids) > max(context.longest, len(asked) + 1):
            ids, ended = ids[: max(context.longest, len(asked) + 1)], False
        context.report(len(ids) - len(asked))
        example = replace(prompt, ids=ids, prompt_length=len(asked), response="", asked=())
        return TeacherCompletion(example, row, number, ended, reply.nll)

    def _answer(
        self, prompt: Example, reply: LogProbReply, context: SourceContext
    ) -> tuple[tuple[int, ...], Completion]:
        """Return the prompt's tokens, an answer's up to the end token, and that token: the server's, else the usual."""
        limit = context.vocab or len(self.tokenizer)
        given = reply.ids if self._send == "ids" else None
        if given is not None and all(0 <= number < limit for number in given):
            asked, said = prompt.question, [*given]
        else:
            ((ids, border),) = follow(self.tokenizer, prompt, [reply.text])
            asked, said = ids[:border], [*ids[border:]]
            refuse_rowless([replace(prompt, ids=ids)], self.tokenizer, limit)
        place = next((at for at, token in enumerate(said) if token in self.ends), None)
        if place is not None:
            return asked, Completion(tuple(said[:place]), said[place])
        usual = reply.stop if reply.stop in self.ends else self.ends.default
        return asked, Completion(tuple(said), usual if reply.ended or not said else None)


def _check_words(prompts: Iterator[Example]) -> None:
    """Refuse prompts without words where words are sent."""
    empty = next((one for one in prompts if not one.prompt.strip()), None)
    if empty is not None:
        raise UsageError(
            "SERVE-11", "the prompt has no text to send", where=f"--source teacher, {empty.where}",
            fix="give --set server.send=ids, if the server's tokenizer is the student's",
        )  # fmt: skip
