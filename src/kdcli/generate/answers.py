"""Answers to prompts: every prompt is read once, rows join and leave the batch, and none depends on its company."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from kdcli.config import GenerationConfig
from kdcli.end_tokens import UNTOLD
from kdcli.generate.batch import Batch
from kdcli.generate.row import Row
from kdcli.generate.speaker import Speaker
from kdcli.models.load import LanguageModel
from kdcli.models.mode import evaluating


@dataclass(frozen=True)
class Answer:
    """What a model said to one prompt.

    Args:
        ids: the answer's tokens, without the end token.
        end: the end token that was written; None where the answer was cut at a length, ``end_tokens.UNTOLD`` where the
            source ended it and does not tell by which token.

    >>> Answer((5, 6), end=7).tokens, Answer((5, 6), end=None).ended
    ((5, 6, 7), False)
    """

    ids: tuple[int, ...]
    end: int | None

    @property
    def ended(self) -> bool:
        """Whether the model ended it; False where it was cut at a length."""
        return self.end is not None

    @property
    def tokens(self) -> tuple[int, ...]:
        """Everything that was written, the end token included."""
        assert self.end != UNTOLD, "a source that tells tokens tells the end token"
        return self.ids if self.end is None else (*self.ids, self.end)


@dataclass(frozen=True)
class Asked:
    """A prompt, and the seeds it is to be answered for.

    Args:
        prompt: token ids, at least one.
        example: its number in the draws.
        seeds: one answer each; the prompt is read once for all of them.
        most: tokens its answer may have, beside the bound that all answers share.
    """

    prompt: Sequence[int]
    example: int
    seeds: tuple[int, ...]
    most: int | None = None


def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    *,
    seed: int,
    examples: Sequence[int] | None = None,
    rows: int | None = None,
    report: Callable[[int], None] = lambda tokens: None,
) -> list[Answer]:
    """Answer every prompt once, greedily at temperature 0, else by sampling.

    Args:
        model: a loaded language model.
        prompts: token ids of each prompt, at least one each.
        config: length, temperature, nucleus mass and batch size; its ``seeds`` are not read here.
        seed: sampling seed.
        examples: the number of each prompt in the draws, default its position; lets a subset or
            another order give the same answers.
        rows: number of real ids, where the head has padding rows; no other id is generated.
        report: called after each step with the number of tokens just generated.

    Returns:
        one answer per prompt, in the prompts' order.

    Raises:
        InputError: an empty prompt, one that fills the model's context, or a recurrent model.
        NumericsError: the model's logits are not finite.
    """
    numbers = range(len(prompts)) if examples is None else examples
    asked = [Asked(prompt, number, (seed,)) for prompt, number in zip(prompts, numbers, strict=True)]
    found = {place: answer for place, _, answer in answers(model, asked, config, rows=rows, report=report)}
    return [found[place] for place in range(len(prompts))]


def answers(
    model: LanguageModel,
    asked: Sequence[Asked],
    config: GenerationConfig,
    *,
    rows: int | None = None,
    report: Callable[[int], None] = lambda tokens: None,
) -> Iterator[tuple[int, int, Answer]]:
    """Answer every prompt once for each of its seeds.

    Args:
        model: a loaded language model.
        asked: prompts and seeds.
        config: length, temperature, nucleus mass and batch size; its ``seeds`` are not read here.
        rows: number of real ids, where the head has padding rows; no other id is generated.
        report: called after each step with the number of tokens just generated.

    Yields:
        position in ``asked``, seed and answer, in the order in which answers end.

    Raises:
        InputError: an empty prompt, one that fills the model's context, or a recurrent model.
        NumericsError: the model's logits are not finite.
    """
    yield from spoken(Speaker(model, rows or model.vocab), asked, config, report)


def spoken(
    speaker: Speaker, asked: Sequence[Asked], config: GenerationConfig, report: Callable[[int], None]
) -> Iterator[tuple[int, int, Answer]]:
    """Let a speaker answer every prompt once for each of its seeds; as :func:`answers` does, and under no autocast."""
    speaker.check([one.prompt for one in asked])
    order = sorted(range(len(asked)), key=lambda place: (-len(asked[place].prompt), place))
    waiting = (
        Row.waiting(place, asked[place].prompt, asked[place].example, seed, asked[place].most)
        for place in order
        for seed in asked[place].seeds
    )
    finished, kind = Batch(speaker, config, report).run(waiting), speaker.device.type
    while True:
        with torch.no_grad(), torch.autocast(kind, enabled=False), evaluating(speaker.model.model):
            row = next(finished, None)
        if row is None:
            return
        yield row.place, row.seed, Answer(tuple(row.said), row.end)
