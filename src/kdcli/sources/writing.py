"""Turns prompts into sequences a model wrote, and sequences into micro-batches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from kdcli.config import GenerationConfig
from kdcli.data.collate import IGNORED, Batch, collate
from kdcli.data.examples import Example
from kdcli.data.order import micro_batches
from kdcli.generate import answers
from kdcli.generate.answers import Answer, Asked
from kdcli.generate.draws import uniforms
from kdcli.losses.supplied import ORIGIN, ORIGIN_SHARE, code_of
from kdcli.models.load import LanguageModel
from kdcli.models.twin import twin
from kdcli.sources.base import Ground

KNOWN = frozenset({ORIGIN, ORIGIN_SHARE})
"""Facts that every label of :func:`batches` has."""

COIN, SAID = 0x636F696E, 0x73616964
"""Purposes of draws, so that one and the same step and example give independent numbers."""


@dataclass(frozen=True)
class Written:
    """One sequence to train on.

    Args:
        example: its tokens, and how many of them are prompt.
        row: index in the data set of the row its prompt comes from; -1 if it comes from none.
        origin: who wrote the response: one of ``losses.supplied.ORIGINS``.
        facts: what is known of each response token, by name, each of shape ``[n]``.
    """

    example: Example
    row: int
    origin: str = "data"
    facts: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def targets(self) -> int:
        """Response tokens, end token included."""
        return len(self.example.ids) - self.example.prompt_length


def draw_seed(seed: int, *numbers: int) -> int:
    """Mix the run's seed with a purpose and a step into the seed of draws, below 2**63.

    >>> draw_seed(0, COIN, 1) == draw_seed(0, COIN, 1), draw_seed(0, COIN, 1) == draw_seed(0, COIN, 2)
    (True, False)
    """
    return int(np.random.SeedSequence((seed, *numbers)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def coins(seed: int, step: int, rows: Sequence[int]) -> list[float]:
    """Return a number in [0, 1) for each row of a step, whatever other rows the step has.

    >>> coins(0, 5, [3, 7])[1] == coins(0, 5, [7])[0]
    True
    """
    return uniforms(draw_seed(seed, COIN, step), rows, 1)[:, 0].tolist() if rows else []


def step_coin(seed: int, step: int) -> float:
    """Return one number in [0, 1) for a whole step."""
    return coins(seed, step, [0])[0]


def write(
    model: LanguageModel,
    prompts: Mapping[int, Example],
    ground: Ground,
    sampling: GenerationConfig,
    *,
    step: int,
    origin: str,
) -> list[Written]:
    """Let a model answer the prompts of some examples.

    The answer to a prompt follows from the model, the run's seed, the step and the example's number; it does
    not depend on the other prompts, on their order, or on which process asks.

    Args:
        model: who writes; its training mode is put back, and no gradient is recorded.
        prompts: number -> an example, of which only the prompt is read.
        ground: seed, real ids, longest sequence, precision, and who is told of tokens.
        sampling: temperature, nucleus mass and length.
        step: optimizer step, from 0.
        origin: one of ``losses.supplied.ORIGINS``.

    Returns:
        one sequence per prompt, in the order given: prompt, answer and, unless it was cut, the end token.

    Raises:
        InputError: a prompt that leaves no room for an answer, or a recurrent model.
        NumericsError: the model's logits are not finite.
    """
    numbers = list(prompts)
    seed = draw_seed(ground.train.seed, SAID, step)
    speaking = model if ground.autocast is None else twin(model, ground.autocast)
    asked = [Asked(one.question, number, (seed,), room(one, ground)) for number, one in prompts.items()]
    said: dict[int, Answer] = {}
    for place, _, answer in answers(speaking, asked, sampling, rows=ground.vocab, report=ground.report):
        said[place] = answer
    return [Written(continued(prompts[number], said[place]), number, origin) for place, number in enumerate(numbers)]


def room(example: Example, ground: Ground) -> int | None:
    """Return how many tokens may follow a prompt, end token included, at least 1; None for any number."""
    return None if ground.longest is None else max(1, ground.longest - len(example.question))


def continued(example: Example, answer: Answer) -> Example:
    """Return an example with its response replaced by an answer and, unless it was cut, the end token it was given.

    >>> one = Example((5, 6, 7, 2), 2, "", (), "")
    >>> continued(one, Answer((8, 9), end=3)).ids
    (5, 6, 8, 9, 3)
    """
    asked = example.question
    return replace(example, ids=(*asked, *answer.tokens), prompt_length=len(asked), response="", asked=())


def batches(written: Sequence[Written], ground: Ground) -> list[Batch]:
    """Cut sequences into padded micro-batches, longest first; every label gets the facts of its sequence.

    The facts in ``KNOWN`` are always there; another one must be known of every sequence. Every process must call
    this once a step, if with nothing: the share of an origin is taken over all processes.

    Args:
        written: this process' sequences of one step.
        ground: token budget, padding, and what a step's loss is divided by.
    """
    examples = [one.example for one in written]
    lengths = [len(one.ids) for one in examples]
    shares = origin_shares(ground.gather([(one.origin, one.targets) for one in written]), ground.train.reduce)
    found = []
    for places in micro_batches(range(len(written)), lengths, ground.train.micro_tokens):
        batch = collate(examples, places, ground.pad_id)
        chosen = [written[place] for place in places]
        rows = torch.tensor([one.row for one in chosen], dtype=torch.int64)
        found.append(replace(batch, example=rows, facts=_facts(chosen, batch, shares)))
    return found


def origin_shares(counted: Sequence[tuple[str, int]], reduce: str) -> dict[str, float]:
    """Return what share of a step each origin has, in tokens or, at ``reduce="sequence"``, in sequences.

    Args:
        counted: origin and response tokens of each sequence of the step.
        reduce: what the step's loss is a mean over.

    >>> origin_shares([("data", 3), ("student", 1)], "token")
    {'data': 0.75, 'student': 0.25}
    """
    sums: dict[str, int] = {}
    for origin, targets in counted:
        sums[origin] = sums.get(origin, 0) + (targets if reduce == "token" else min(targets, 1))
    return {origin: count / max(sum(sums.values()), 1) for origin, count in sums.items()}


def _facts(written: Sequence[Written], batch: Batch, shares: Mapping[str, float]) -> dict[str, Tensor]:
    valid = batch.labels != IGNORED
    codes = torch.tensor([code_of(one.origin) for one in written], dtype=torch.int64)
    share = torch.tensor([shares[one.origin] for one in written], dtype=torch.float32)
    facts = {ORIGIN: codes[:, None] * valid, ORIGIN_SHARE: share[:, None] * valid}
    for name in written[0].facts:
        values = torch.cat([one.facts[name] for one in written])
        facts[name] = torch.zeros(valid.shape, dtype=values.dtype).masked_scatter_(valid, values)
    return facts
