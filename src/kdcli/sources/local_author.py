"""A model that is loaded here as the author of a teacher's text."""

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING

from kdcli.data.examples import Example
from kdcli.generate.answers import Answer, Asked, answers
from kdcli.models.load import LanguageModel
from kdcli.models.twin import twin
from kdcli.sources.author import Wanted
from kdcli.sources.base import Ground
from kdcli.sources.beam import beam_answers
from kdcli.sources.log_probs import response_log_probs
from kdcli.sources.sentences import Sentence
from kdcli.sources.writing import SAID, continued, draw_seed, room

if TYPE_CHECKING:
    from kdcli.sources.teacher import TeacherSource


class LocalAuthor:
    """A model that is loaded here; answers are drawn by (seed, row) alone and read once more for their likelihood.

    Args:
        model: the teacher.
        ground: the precision in which it writes.
    """

    def __init__(self, model: LanguageModel, ground: Ground) -> None:
        self._whole, self._autocast = model, ground.autocast
        self.tokenizer, self.ends, self.digest = model.tokenizer, model.ends, model.digest
        self.precision = str(ground.autocast)

    @cached_property
    def model(self) -> LanguageModel:
        """The model in the precision in which it writes."""
        return self._whole if self._autocast is None else twin(self._whole, self._autocast)

    def write(
        self, source: "TeacherSource", ground: Ground, prompts: Mapping[int, Example], wanted: Wanted
    ) -> Iterator[Sentence]:
        """Yield the answers wanted, as they end."""
        for row, number, answer in self._answers(source, ground, prompts, wanted):
            example = continued(prompts[row], answer)
            log_probs = response_log_probs(self.model, example, ground.vocab or self.model.vocab)
            yield Sentence(example, row, number, answer.ended, -log_probs.double().mean().item())

    def _answers(
        self, source: "TeacherSource", ground: Ground, prompts: Mapping[int, Example], wanted: Wanted
    ) -> Iterator[tuple[int, int, Answer]]:
        if source.decode == "beam":
            for row in wanted:
                prompt = prompts[row].question
                found = beam_answers(
                    self.model, prompt, width=source.beams, best=source.answers, ids=ground.vocab or self.model.vocab,
                    most=min(source.max_new_tokens, room(prompts[row], ground) or source.max_new_tokens),
                )  # fmt: skip
                ground.report(sum(len(answer.ids) + answer.ended for answer in found))
                yield from ((row, number, answer) for number, answer in enumerate(found))
            return
        seeds = {draw_seed(source.seed, SAID, number): number for number in range(source.answers)}
        back = {number: seed for seed, number in seeds.items()}
        rows = list(wanted)
        asked = [
            Asked(
                prompts[row].question, row, tuple(back[n] for n in wanted[row]),
                room(prompts[row], ground),
            )
            for row in rows
        ]  # fmt: skip
        for place, seed, answer in answers(self.model, asked, source.sampling, rows=ground.vocab, report=ground.report):
            yield rows[place], seeds[seed], answer
