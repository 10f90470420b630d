"""Turns prompts into sampled sequences, and sequences into micro-batches."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from kdcli.config.sections import GenerationConfig
from kdcli.data.batching import IGNORED, Batch, collate, epoch_steps, micro_batches
from kdcli.data.tokenize import Example
from kdcli.generation import answers
from kdcli.generation.batch import Completion, GenerationRequest
from kdcli.generation.sampling import uniforms
from kdcli.losses.token_facts import ORIGIN, ORIGIN_SHARE, ORIGINS, TRUST, code_of
from kdcli.models.load import LanguageModel, cast_copy
from kdcli.sources.base import SourceContext, StepBatches
from kdcli.sources.token_counts import TokenCounts

KNOWN = frozenset({ORIGIN, ORIGIN_SHARE, TRUST})
"""Facts that every label of :func:`batches` has."""

COIN, SAID = 0x636F696E, 0x73616964
"""Purposes of draws, so that one and the same step and example give independent numbers."""


@dataclass(frozen=True)
class TrainingSequence:
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

    @property
    def teacher_trust(self) -> float:
        """How far the teacher is trusted on the response: what its row says, if that wrote it, else 1."""
        return self.example.teacher_trust if self.origin in ("data", "corpus") else 1.0


def draw_seed(seed: int, *numbers: int) -> int:
    """Mix the run's seed with a purpose and a step into the seed of draws, below 2**63.

    >>> draw_seed(0, COIN, 1) == draw_seed(0, COIN, 1), draw_seed(0, COIN, 1) == draw_seed(0, COIN, 2)
    (True, False)
    """
    return int(np.random.SeedSequence((seed, *numbers)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def row_uniforms(seed: int, step: int, rows: Sequence[int]) -> list[float]:
    """Return a number in [0, 1) for each row of a step, whatever other rows the step has.

    >>> row_uniforms(0, 5, [3, 7])[1] == row_uniforms(0, 5, [7])[0]
    True
    """
    return uniforms(draw_seed(seed, COIN, step), rows, 1)[:, 0].tolist() if rows else []


def step_uniform(seed: int, step: int) -> float:
    """Return one number in [0, 1) for a whole step."""
    return row_uniforms(seed, step, [0])[0]


def write(
    model: LanguageModel,
    prompts: Mapping[int, Example],
    context: SourceContext,
    sampling: GenerationConfig,
    *,
    step: int,
    origin: str,
) -> list[TrainingSequence]:
    """Let a model answer the prompts of some examples.

    The answer to a prompt follows from the model, the run's seed, the step and the example's number; it does
    not depend on the other prompts, on their order, or on which process asks.

    Args:
        model: who writes; its training mode is put back, and no gradient is recorded.
        prompts: number -> an example, of which only the prompt is read.
        context: seed, real ids, longest sequence, precision, and the callback for generated tokens.
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
    seed = draw_seed(context.train.seed, SAID, step)
    speaking = model if context.autocast is None else cast_copy(model, context.autocast)
    asked = [
        GenerationRequest(one.question, number, (seed,), max_completion(one, context))
        for number, one in prompts.items()
    ]
    said: dict[int, Completion] = {}
    for place, _, answer in answers(speaking, asked, sampling, rows=context.vocab, report=context.report):
        said[place] = answer
    return [
        TrainingSequence(with_completion(prompts[number], said[place]), number, origin)
        for place, number in enumerate(numbers)
    ]


def max_completion(example: Example, context: SourceContext) -> int | None:
    """Return how many tokens may follow a prompt, end token included, at least 1; None for any number."""
    return None if context.longest is None else max(1, context.longest - len(example.question))


def with_completion(example: Example, answer: Completion) -> Example:
    """Return an example with its response replaced by an answer and, unless it was cut, the end token it was given.

    >>> one = Example((5, 6, 7, 2), 2, "", (), "")
    >>> with_completion(one, Completion((8, 9), end=3)).ids
    (5, 6, 8, 9, 3)
    """
    asked = example.question
    return replace(example, ids=(*asked, *answer.tokens), prompt_length=len(asked), response="", asked=())


def batches(written: Sequence[TrainingSequence], context: SourceContext) -> list[Batch]:
    """Cut sequences into padded micro-batches, longest first; every label gets the facts of its sequence.

    The facts in ``KNOWN`` are always there; another one must be known of every sequence. Every process must call
    this once a step, if with nothing: the share of an origin is taken over all processes.

    Args:
        written: this process' sequences of one step.
        context: token budget, padding, and what a step's loss is divided by.
    """
    examples = [one.example for one in written]
    lengths = [len(one.ids) for one in examples]
    shares = origin_shares(context.gather([(one.origin, one.targets) for one in written]), context.train.reduce)
    found = []
    for places in micro_batches(range(len(written)), lengths, context.train.micro_tokens):
        batch = collate(examples, places, context.pad_id)
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


def _facts(written: Sequence[TrainingSequence], batch: Batch, shares: Mapping[str, float]) -> dict[str, Tensor]:
    valid = batch.labels != IGNORED
    codes = torch.tensor([code_of(one.origin) for one in written], dtype=torch.int64)
    share = torch.tensor([shares[one.origin] for one in written], dtype=torch.float32)
    trust = torch.tensor([one.teacher_trust for one in written], dtype=torch.float32)
    facts = {ORIGIN: codes[:, None] * valid, ORIGIN_SHARE: share[:, None] * valid, TRUST: trust[:, None] * valid}
    for name in written[0].facts:
        values = torch.cat([one.facts[name] for one in written])
        facts[name] = torch.zeros(valid.shape, dtype=values.dtype).masked_scatter_(valid, values)
    return facts


# Windows over the rows of a data set: which of them form a step, whatever becomes of each.


class RowWindows(StepBatches):
    """Windows in which each row of a step becomes one sequence; every process takes a strided part of the rows.

    Args:
        context: data set, settings, and which process this is.
    """

    def __init__(self, context: SourceContext) -> None:
        self.context = context
        self._epoch: tuple[int, list[list[int]]] | None = None
        self._given: list[TrainingSequence] = []
        self._written, self._effort = 0, TokenCounts()

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the data; the last of them may be short."""
        return math.ceil(len(self.context.dataset) / self.context.train.batch_size)

    @property
    def total_steps(self) -> int:
        """``max_steps`` if given, else as many steps as the epochs hold, at least 1."""
        if self.context.train.max_steps is not None:
            return self.context.train.max_steps
        return max(1, math.ceil(self.context.train.epochs * self.steps_per_epoch - 1e-6))

    def steps(self, epoch: int) -> list[list[int]]:
        """Return the examples of each step of an epoch, over all processes."""
        if self._epoch is None or self._epoch[0] != epoch:  # computed once per epoch, the same whenever asked
            train = self.context.train
            steps = epoch_steps(
                self.context.dataset.lengths,
                train.batch_size,
                seed=train.seed,
                epoch=epoch,
                window=train.length_window,
            )
            self._epoch = (epoch, steps)
        return self._epoch[1]

    def members(self, step: int) -> list[int]:
        """Return this process' examples of a step.

        Raises:
            ValueError: no such step.
        """
        return self.all_members(step)[self.context.rank :: self.context.world]

    def all_members(self, step: int) -> list[int]:
        """Return the examples of a step, over all processes.

        Raises:
            ValueError: no such step.
        """
        if not 0 <= step < self.total_steps:
            raise ValueError(f"expected a step in 0..{self.total_steps - 1}, got {step}")
        epoch, at = divmod(step, self.steps_per_epoch)
        return self.steps(epoch)[at]

    def window(self, step: int) -> list[Batch]:
        """Return this process' micro-batches of a step, longest first.

        Raises:
            ValueError: no such step.
        """
        self.begin()
        self._given = self.write(step, self.members(step))
        return batches(self._given, self.context)

    def begin(self) -> None:
        """Start to count the tokens of a step."""
        self._written, self._effort = 0, TokenCounts()

    def count(self, fresh: Sequence[TrainingSequence]) -> None:
        """Count what the student has just written for the step."""
        self._written += sum(one.targets for one in fresh)
        self._effort += TokenCounts.of_answers("student", [(one.example.prompt_length, one.targets) for one in fresh])

    @abstractmethod
    def write(self, step: int, rows: Sequence[int]) -> list[TrainingSequence]:
        """Return the sequence that each of some rows becomes at a step, in their order.

        Args:
            step: optimizer step, from 0.
            rows: indexes in the data set; every process is asked, if with none.
        """

    @property
    def generated(self) -> int:
        """Tokens that this process generated for the window given last."""
        return self._written

    @property
    def effort(self) -> TokenCounts:
        """What this process' writing for the window given last took."""
        return self._effort

    def origins(self) -> dict[str, int]:
        """Return how many of this process' sequences of the window given last each origin has."""
        names = [one.origin for one in self._given]
        return {name: names.count(name) for name in ORIGINS if name in names}
