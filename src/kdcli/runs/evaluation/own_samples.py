"""Facts of the tokens of sampled answers: what both models say about what one of them said."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from kdcli.config import GenerationConfig
from kdcli.data.examples import Example, TokenDataset
from kdcli.engine.devices import Device
from kdcli.engine.events import Event, Report
from kdcli.engine.speculative import as_columns, speculate
from kdcli.engine.teacher import LiveTeacher
from kdcli.engine.token_facts import token_facts
from kdcli.errors import InputError
from kdcli.generate import Answer
from kdcli.metrics.own import OwnFacts
from kdcli.models.load import LanguageModel
from kdcli.runs.evaluation.asking import answer
from kdcli.runs.evaluation.local import LocalModel

_MICRO_TOKENS = 4096


@dataclass(frozen=True)
class Speakers:
    """Who samples, who is compared with whom, and where.

    Args:
        student: the model measured.
        teacher: what it is compared with, itself and not a cache of it, or None.
        config: how answers are sampled.
        draft_tokens: tokens the student drafts per call of the teacher in speculative sampling.
        device: where to compute.
        report: told how far it is.
    """

    student: LanguageModel
    teacher: LanguageModel | None
    config: GenerationConfig
    draft_tokens: int
    device: Device
    report: Report

    @property
    def seeds(self) -> tuple[int, ...]:
        """Sampling seeds, one answer each; greedy answers are all the same, so one does."""
        return self.config.seeds if self.config.temperature > 0 else self.config.seeds[:1]

    def check_room(self, dataset: TokenDataset) -> None:
        """Refuse prompts after which an answer could be cut by a context before its longest length.

        Raises:
            InputError: names the model and how long answers can be.
        """
        longest = max(len(example.question) for example in dataset.examples)
        for model in (self.student, self.teacher):
            if model is None or model.positions is None or longest + self.config.max_new_tokens <= model.positions:
                continue
            what = f"{longest} prompt and {self.config.max_new_tokens} answer tokens exceed {model.positions} positions"
            room = model.positions - self.config.max_new_tokens
            fix = f"set data.max_prompt_length={room}" if room > 0 else "set a smaller --max-new-tokens"
            raise InputError("EVAL-06", what, where=model.path, fix=fix)


def sample_answers(model: LanguageModel, dataset: TokenDataset, speakers: Speakers, whose: str) -> list[list[Answer]]:
    """Sample a model's answers to every row, ``[example][sampling seed]``."""
    speakers.report(Event("note", f"sampling the {whose}'s answers"))
    texts = answer(LocalModel(model, speakers.config, speakers.device), dataset, speakers.config, speakers.report)
    assert texts.answers is not None, "a model in this process answers in tokens"
    return texts.answers


def facts_of_answers(
    answers: Sequence[Sequence[Answer]],
    dataset: TokenDataset,
    speakers: Speakers,
    names: Collection[str],
) -> OwnFacts:
    """Measure every token of sampled answers with both models.

    Args:
        answers: ``[example][answer]``, equally many for each example; an end token counts as a token of its answer.
        dataset: the prompts.
        speakers: both models.
        names: token facts wanted.
    """
    count = len(answers[0])
    spoken = TokenDataset(
        tuple(
            _spoken(example, answer) for example, said in zip(dataset.examples, answers, strict=True) for answer in said
        )
    )
    teacher = None if speakers.teacher is None else LiveTeacher(speakers.teacher)
    facts, row = token_facts(
        speakers.student, teacher, spoken,
        vocab=speakers.student.vocab, micro_tokens=_MICRO_TOKENS, device=speakers.device, report=speakers.report,
        names=names,
    )  # fmt: skip
    tokens = np.bincount(row, minlength=len(spoken))
    first = np.cumsum(tokens) - tokens
    return OwnFacts(
        facts, row // count, row % count, np.arange(len(row)) - first[row],
        len(dataset), count, speakers.config.max_new_tokens,
    )  # fmt: skip


def facts_of_drafting(dataset: TokenDataset, speakers: Speakers) -> OwnFacts:
    """Answer every row once per sampling seed by speculative sampling, and record every test of a drafted token."""
    assert speakers.teacher is not None, "metrics that read it say that they need a teacher"
    seeds, stage, tests = speakers.seeds, "drafting for the teacher", []
    speakers.report(Event("stage", stage, total=len(dataset)))
    for number, example in enumerate(dataset.examples):
        prompt = example.question
        for seed in seeds:
            _, found = speculate(
                speakers.student, speakers.teacher, prompt, speakers.config,
                draft_tokens=speakers.draft_tokens, seed=seed, example=number,
            )  # fmt: skip
            tests.append(found)
        speakers.report(Event("progress", stage, done=number + 1, total=len(dataset)))
    facts, row, position = as_columns(tests)
    count = len(seeds)
    return OwnFacts(facts, row // count, row % count, position, len(dataset), count, speakers.config.max_new_tokens)


def _spoken(example: Example, answer: Answer) -> Example:
    """A row whose response is a sampled answer."""
    prompt = example.question
    return Example((*prompt, *answer.tokens), len(prompt), example.prompt, (), example.where)
