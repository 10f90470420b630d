"""MiniLLM's rollouts: sequences sampled from a mixture of teacher and student, each round used several times."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from kdcli.config.sections import GenerationConfig
from kdcli.data.batching import Batch, epoch_steps
from kdcli.data.tokenize import Example
from kdcli.generation import answers
from kdcli.generation.batch import GenerationRequest
from kdcli.generation.mixture import mixed_answers
from kdcli.generation.scoring import label_log_probs
from kdcli.losses.token_facts import BEHAVIOUR_LOGP, STUDENT_LOGP
from kdcli.models.load import cast_copy
from kdcli.sources.base import Source, SourceContext, SourceNeeds, StepBatches
from kdcli.sources.sequences import KNOWN, SAID, TrainingSequence, batches, draw_seed, max_completion, with_completion
from kdcli.sources.token_counts import TokenCounts

# Sequences drawn from a mixture of two models: drawing, scoring, what they look like, and how they are kept.


_GROUP = 4
"""Tokens in the groups whose repetition is counted."""


@dataclass(frozen=True)
class Rollout:
    """One drawn sequence.

    Args:
        place: its number in the round.
        row: the training row whose prompt it answers.
        example: prompt and answer.
        ended: whether the end token was drawn.
        behaviour: log-probability of each token of the answer under the mixture, ``[n]``.
        student: the same under the student that drew it.
        teacher: the same under the teacher.
    """

    place: int
    row: int
    example: Example
    ended: bool
    behaviour: Tensor
    student: Tensor
    teacher: Tensor

    @property
    def ids(self) -> tuple[int, ...]:
        """Prompt and answer."""
        return self.example.ids

    @property
    def targets(self) -> int:
        """Tokens drawn."""
        return len(self.example.ids) - self.example.prompt_length

    @property
    def written(self) -> TrainingSequence:
        """The sequence to train on, with its facts."""
        facts = {BEHAVIOUR_LOGP: self.behaviour, STUDENT_LOGP: self.student}
        return TrainingSequence(self.example, self.row, "rollout", facts)

    @staticmethod
    def text(example: Example) -> TrainingSequence:
        """Return a text of the corpus; it was not sampled, so its log-probabilities are 0 and not read."""
        nothing = torch.zeros(len(example.ids) - example.prompt_length)
        return TrainingSequence(example, -1, "corpus", {BEHAVIOUR_LOGP: nothing, STUDENT_LOGP: nothing})


def draw_rollouts(
    prompts: Mapping[int, int], context: SourceContext, sampling: GenerationConfig, *, alpha: float, number: int
) -> list[Rollout]:
    """Draw one sequence for each prompt, and score it with both models.

    A sequence follows from both models, the run's seed, the round and its place in it, whatever else is drawn.

    Args:
        prompts: place in the round -> training row.
        context: both models, seed, real ids, longest sequence, precision, and the callback for generated tokens.
        sampling: length; temperature 1 and nothing cut off.
        alpha: the teacher's share.
        number: of the round, from 0.

    Raises:
        InputError: a prompt that leaves no room for an answer, or a recurrent model.
        NumericsError: a model's logits are not finite.
    """
    student, teacher = context.student, context.teacher
    assert student is not None, "the source declares needs().student"
    assert teacher is not None, "the source declares needs().teacher"
    if not prompts:
        return []
    examples, places = context.dataset.examples, list(prompts)
    seed = draw_seed(context.train.seed, SAID, number)
    asked = [
        GenerationRequest(one.question, place, (seed,), max_completion(one, context))
        for place, one in ((place, examples[row]) for place, row in prompts.items())
    ]
    speaking = student if context.autocast is None else cast_copy(student, context.autocast)
    shared = {"rows": context.vocab, "report": context.report}
    if alpha > 0:
        coming = mixed_answers(speaking, teacher, alpha, asked, sampling, **shared)
    else:
        coming = answers(speaking, asked, sampling, **shared)
    said = {place: answer for place, _, answer in coming}
    found = []
    for at, place in enumerate(places):
        row = prompts[place]
        example = with_completion(examples[row], said[at])
        found.append(_scored(place, row, example, said[at].ended, alpha, context))
    return found


def _scored(place: int, row: int, example: Example, ended: bool, alpha: float, context: SourceContext) -> Rollout:
    assert context.student is not None
    assert context.teacher is not None
    vocab = context.vocab or min(context.student.vocab, context.teacher.vocab)
    log_q, log_p = (
        label_log_probs(model, example.ids, example.prompt_length, vocab, context.autocast)
        for model in (context.student, context.teacher)
    )
    return Rollout(place, row, example, ended, mixture_logp(log_q, log_p, alpha), log_q, log_p)


def mixture_logp(log_q: Tensor, log_p: Tensor, alpha: float) -> Tensor:
    """Return log(alpha p + (1 - alpha) q) of tokens whose log-probabilities are given.

    >>> round(mixture_logp(torch.tensor(0.5).log(), torch.tensor(0.1).log(), 0.25).exp().item(), 4)
    0.4
    """
    if alpha in (0.0, 1.0):
        return log_p if alpha else log_q
    share = torch.tensor(alpha, dtype=torch.float64)
    return torch.logaddexp(log_q + torch.log1p(-share).item(), log_p + torch.log(share).item())


def summary(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Return what a round's sequences are like, as means over sequences.

    Args:
        rollouts: at least one.

    Returns:
        length in tokens, end token left out, share of 4-grams said before, share that drew the end token, and the
        sequence KL(q || p) by k3: the sum over tokens of (q/p~) (p/q - 1 - log p/q).
    """
    said = [list(one.ids[one.example.prompt_length :]) for one in rollouts]
    texts = [ids[:-1] if one.ended else ids for one, ids in zip(rollouts, said, strict=True)]
    found = {
        "length": [float(len(ids)) for ids in texts],
        "repetition": [repeated(ids) for ids in texts],
        "ended": [float(one.ended) for one in rollouts],
        "sequence_kl": [_k3(one) for one in rollouts],
    }
    return {f"rollout.{name}": sum(values) / len(values) for name, values in found.items()}


def _k3(one: Rollout) -> float:
    gap = (one.teacher - one.student).double()
    weight = torch.exp((one.student - one.behaviour).double())
    return (weight * (torch.expm1(gap) - gap)).sum().item()


def repeated(ids: Sequence[int]) -> float:
    """Return the share of a sequence's 4-grams that occurred in it before.

    >>> repeated([1, 2, 3, 4, 1, 2, 3, 4])
    0.2
    """
    grams = [tuple(ids[at : at + _GROUP]) for at in range(len(ids) - _GROUP + 1)]
    return (len(grams) - len(set(grams))) / len(grams) if grams else 0.0


def packed(number: int, rollouts: Sequence[Rollout]) -> dict[str, Tensor]:
    """Lay a round out in tensors for a checkpoint."""
    columns = {
        "number": [number],
        "rows": [one.row for one in rollouts],
        "sizes": [one.targets for one in rollouts],
        "ended": [int(one.ended) for one in rollouts],
        "said": [token for one in rollouts for token in one.ids[one.example.prompt_length :]],
    }
    logps = {name: torch.cat([getattr(one, name) for one in rollouts]) for name in ("behaviour", "student", "teacher")}
    return {name: torch.tensor(values, dtype=torch.int64) for name, values in columns.items()} | logps


def unpacked(state: Mapping[str, Tensor], examples: Sequence[Example]) -> tuple[int, list[Rollout]]:
    """Read a round back; prompts are those of the training rows."""
    sizes = state["sizes"].tolist()
    said = state["said"].split(sizes)
    logps = [state[name].split(sizes) for name in ("behaviour", "student", "teacher")]
    found = []
    for place, (row, ended) in enumerate(zip(state["rows"].tolist(), state["ended"].tolist(), strict=True)):
        prompt = examples[row].question
        ids = (*prompt, *said[place].tolist())
        example = replace(examples[row], ids=ids, prompt_length=len(prompt), response="", asked=())
        found.append(Rollout(place, row, example, bool(ended), *(part[place] for part in logps)))
    return int(state["number"]), found


_ORDER, _PROMPTS, _CORPUS = 0x6F72, 0x7072, 0x636F


class RolloutSource(Source):
    """Sequences drawn token by token from ``alpha`` p + (1 - ``alpha``) q, with the probabilities they were drawn with.

    A round draws ``rollouts`` sequences, one for each of as many prompts of the training rows, with the student as it
    is then; the next steps read them, ``epochs`` times, each time in another order. Then the next round begins. At
    every token both models are asked, each with its cache of keys and values; temperature is 1 and nothing is cut
    off, so that the probabilities are those of the draw. ``corpus`` sequences of a second corpus come with each step.

    A token carries log p~ of the mixture it was drawn from and log q of the student that drew it: what ``minillm``
    weighs by. The drawn sequences are part of a checkpoint, for the student that drew them is gone by then.

    >>> sorted(RolloutSource().needs().facts)
    ['behaviour_logp', 'origin', 'origin_share', 'student_logp', 'teacher_trust']
    """

    name: ClassVar[str] = "rollout"
    summary: ClassVar[str] = "sequences drawn from teacher and student together, in rounds that are read several times"
    reference: ClassVar[str] = "Gu et al. 2024 (MiniLLM, arXiv 2306.08543), equation 4 and algorithm 1"

    alpha: Annotated[float, Field(ge=0, le=1, description="the teacher's share in the mixture drawn from")] = 0.2
    rollouts: Annotated[int, Field(ge=1, description="sequences of a round, at most one per training row")] = 256
    epochs: Annotated[int, Field(ge=1, description="how often a round is read")] = 4
    max_new_tokens: Annotated[int, Field(ge=1, description="tokens per answer at most, end token included")] = 128
    corpus: Annotated[int, Field(ge=0, description="sequences of the second corpus per step; 0 for none")] = 0

    def needs(self) -> SourceNeeds:
        """Ask for both models, and for the corpus if it is read."""
        origins = {"rollout", "corpus"} if self.corpus else {"rollout"}
        return SourceNeeds(
            student=True,
            teacher=True,
            same_tokens=True,
            corpus=self.corpus > 0,
            offline=False,
            facts=KNOWN | {BEHAVIOUR_LOGP, STUDENT_LOGP},
            origins=frozenset(origins),
        )

    def open(self, context: SourceContext) -> "RolloutWindows":
        """Return the windows of a run."""
        return RolloutWindows(context, self)

    @property
    def sampling(self) -> GenerationConfig:
        """How sequences are drawn."""
        return GenerationConfig(max_new_tokens=self.max_new_tokens, temperature=1.0, top_p=1.0, seeds=(0,))


class RolloutWindows(StepBatches):
    """Windows over rounds of drawn sequences; every process takes a strided part of each step.

    Args:
        context: data set, settings and models; both models are asked at the first step of a round.
        source: its options.
    """

    def __init__(self, context: SourceContext, source: RolloutSource) -> None:
        self.context, self.source = context, source
        self.size = min(source.rollouts, len(context.dataset))
        self._round: tuple[int, list[Rollout]] | None = None
        self._generated, self._effort = 0, TokenCounts()
        self._given: list[TrainingSequence] = []

    @property
    def steps_per_round(self) -> int:
        """Optimizer steps between two draws."""
        return self.source.epochs * math.ceil(self.size / self.context.train.batch_size)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps until as many prompts were answered as there are rows."""
        return math.ceil(len(self.context.dataset) / self.size) * self.steps_per_round

    @property
    def total_steps(self) -> int:
        """``max_steps`` if given, else as many steps as the epochs hold, at least 1."""
        if self.context.train.max_steps is not None:
            return self.context.train.max_steps
        return max(1, math.ceil(self.context.train.epochs * self.steps_per_epoch - 1e-6))

    def window(self, step: int) -> list[Batch]:
        """Return this process' micro-batches of a step, longest first.

        Raises:
            ValueError: no such step.
        """
        if not 0 <= step < self.total_steps:
            raise ValueError(f"expected a step in 0..{self.total_steps - 1}, got {step}")
        number, at = divmod(step, self.steps_per_round)
        self._generated, self._effort = 0, TokenCounts()
        rollouts = self._drawn(number, at)
        epoch, place = divmod(at, self.steps_per_round // self.source.epochs)
        mine = slice(self.context.rank, None, self.context.world)
        chosen = [rollouts[index].written for index in self._order(number, epoch, rollouts)[place][mine]]
        self._given = [*chosen, *(self._text(index) for index in self._texts(step)[mine])]
        return batches(self._given, self.context)

    def _drawn(self, number: int, at: int) -> list[Rollout]:
        """Return the sequences of a round, which are drawn at its first step."""
        if self._round is None or self._round[0] != number:
            assert at == 0, "a checkpoint within a round holds its sequences"
            prompts = self._prompts(number)
            mine = {place: prompts[place] for place in range(self.context.rank, len(prompts), self.context.world)}
            made = draw_rollouts(mine, self.context, self.source.sampling, alpha=self.source.alpha, number=number)
            self._generated, self._effort = sum(one.targets for one in made), self._took(made)
            self._round = number, sorted(self.context.gather(made), key=lambda one: one.place)
        return self._round[1]

    def _took(self, made: Sequence[Rollout]) -> TokenCounts:
        """Return what a round takes: both models draw, unless the teacher has no share, and both score."""
        lengths = [(one.example.prompt_length, one.targets) for one in made]
        student, teacher = (TokenCounts.of_answers(who, lengths) for who in ("student", "teacher"))
        return student + student + teacher + (teacher if self.source.alpha else TokenCounts())

    def _prompts(self, number: int) -> list[int]:
        """Return the rows whose prompts a round answers: the next ones of a new permutation at each pass."""
        return _stretch(len(self.context.dataset), number * self.size, self.size, self.context.train.seed, _PROMPTS)

    def _order(self, number: int, epoch: int, rollouts: Sequence[Rollout]) -> list[list[int]]:
        """Return which of a round's sequences each step of an inner epoch reads."""
        train = self.context.train
        lengths = [len(one.ids) for one in rollouts]
        seed = draw_seed(train.seed, _ORDER, number)
        return epoch_steps(lengths, train.batch_size, seed=seed, epoch=epoch, window=train.length_window)

    def _texts(self, step: int) -> list[int]:
        """Return the rows of the second corpus that come with a step."""
        count = self.source.corpus
        if not count:
            return []
        assert self.context.corpus is not None, "the source declares needs().corpus"
        return _stretch(len(self.context.corpus), step * count, count, self.context.train.seed, _CORPUS)

    def _text(self, row: int) -> TrainingSequence:
        assert self.context.corpus is not None, "the source declares needs().corpus"
        return Rollout.text(self.context.corpus.examples[row])

    @property
    def generated(self) -> int:
        """Tokens that this process drew for the window given last."""
        return self._generated

    @property
    def effort(self) -> TokenCounts:
        """What this process' drawing for the window given last took."""
        return self._effort

    def origins(self) -> dict[str, int]:
        """Return how many of this process' sequences of the window given last each origin has."""
        names = [one.origin for one in self._given]
        return {name: names.count(name) for name in ("rollout", "corpus") if name in names}

    def values(self) -> dict[str, float]:
        """Return length, repetition, share that ended, and sequence KL of the round's sequences."""
        return {} if self._round is None else summary(self._round[1])

    def state(self) -> dict[str, Tensor]:
        """Return the sequences of the round under way."""
        return {} if self._round is None else packed(*self._round)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on with the sequences of a round under way."""
        self._round = unpacked(state, self.context.dataset.examples) if state else None


def _stretch(rows: int, start: int, count: int, *key: int) -> list[int]:
    """Return places start to start + count of an endless row of permutations, one after the other."""
    found: list[int] = []
    while len(found) < count:
        turn, at = divmod(start + len(found), rows)
        order = [step[0] for step in epoch_steps([1] * rows, 1, seed=draw_seed(*key), epoch=turn, window=1)]
        found += order[at : at + count - len(found)]
    return found
