"""A model in this process as a source of answers."""

import time
from collections.abc import Iterator, Sequence

from kdcli.config import GenerationConfig
from kdcli.engine.devices import Device
from kdcli.engine.events import Event, Report
from kdcli.generate import Answer, Asked, answers
from kdcli.models.ends import answer_key
from kdcli.models.load import LanguageModel
from kdcli.models.twin import twin
from kdcli.runs.evaluation.answering import Question, Said


class LocalModel:
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

    def answers_for(self, questions: Sequence[Question], report: Report) -> Iterator[Said]:
        """Yield one answer per question and seed, as they end.

        Args:
            questions: what is to be answered; each prompt is read once.
            report: told how many answers are made, and at how many tokens per second.

        Raises:
            InputError: an empty prompt, one that fills the model's context, or a recurrent model.
            NumericsError: the model's logits are not finite.
        """
        asked = [Asked(question.ids, question.number, question.seeds) for question in questions]
        pace = _Pace(sum(len(question.seeds) for question in questions), report)
        model = self._model if self._dtype is None else twin(self._model, self._dtype)
        for place, seed, answer in answers(model, asked, self._generation, rows=model.vocab, report=pace.count):
            pace.done += 1
            yield Said(questions[place].number, seed, self._text(answer), answer)

    def _text(self, answer: Answer) -> str:
        text = self._model.tokenizer.decode(
            list(answer.ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(text).strip()


class _Pace:
    """Says how far answering is, and how fast."""

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
