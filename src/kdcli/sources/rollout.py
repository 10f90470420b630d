"""The source of MiniLLM: sequences drawn from teacher and student together, each round of them read several times."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from kdcli.config import GenerationConfig
from kdcli.data.collate import Batch
from kdcli.data.order import epoch_steps
from kdcli.losses.supplied import BEHAVIOUR_LOGP, STUDENT_LOGP
from kdcli.sources.base import Ground, Source, SourceNeeds, Windows
from kdcli.sources.effort import Effort
from kdcli.sources.rollouts import Rollout, drawn, packed, summary, unpacked
from kdcli.sources.writing import KNOWN, Written, batches, draw_seed

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
    ['behaviour_logp', 'origin', 'origin_share', 'student_logp']
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
            fixed=False,
            facts=KNOWN | {BEHAVIOUR_LOGP, STUDENT_LOGP},
            origins=frozenset(origins),
        )

    def open(self, ground: Ground) -> "RolloutWindows":
        """Return the windows of a run."""
        return RolloutWindows(ground, self)

    @property
    def sampling(self) -> GenerationConfig:
        """How sequences are drawn."""
        return GenerationConfig(max_new_tokens=self.max_new_tokens, temperature=1.0, top_p=1.0, seeds=(0,))


class RolloutWindows(Windows):
    """Windows over rounds of drawn sequences; every process takes a strided part of each step.

    Args:
        ground: what the source stands on; both models are asked at the first step of a round.
        source: its options.
    """

    def __init__(self, ground: Ground, source: RolloutSource) -> None:
        self.ground, self.source = ground, source
        self.size = min(source.rollouts, len(ground.dataset))
        self._round: tuple[int, list[Rollout]] | None = None
        self._generated, self._effort = 0, Effort()
        self._given: list[Written] = []

    @property
    def steps_per_round(self) -> int:
        """Optimizer steps between two draws."""
        return self.source.epochs * math.ceil(self.size / self.ground.train.batch_size)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps until as many prompts were answered as there are rows."""
        return math.ceil(len(self.ground.dataset) / self.size) * self.steps_per_round

    @property
    def total_steps(self) -> int:
        """``max_steps`` if given, else as many steps as the epochs hold, at least 1."""
        if self.ground.train.max_steps is not None:
            return self.ground.train.max_steps
        return max(1, math.ceil(self.ground.train.epochs * self.steps_per_epoch - 1e-6))

    def window(self, step: int) -> list[Batch]:
        """Return this process' micro-batches of a step, longest first.

        Raises:
            ValueError: no such step.
        """
        if not 0 <= step < self.total_steps:
            raise ValueError(f"expected a step in 0..{self.total_steps - 1}, got {step}")
        number, at = divmod(step, self.steps_per_round)
        self._generated, self._effort = 0, Effort()
        rollouts = self._drawn(number, at)
        epoch, place = divmod(at, self.steps_per_round // self.source.epochs)
        mine = slice(self.ground.rank, None, self.ground.world)
        chosen = [rollouts[index].written for index in self._order(number, epoch, rollouts)[place][mine]]
        self._given = [*chosen, *(self._text(index) for index in self._texts(step)[mine])]
        return batches(self._given, self.ground)

    def _drawn(self, number: int, at: int) -> list[Rollout]:
        """Return the sequences of a round, which are drawn at its first step."""
        if self._round is None or self._round[0] != number:
            assert at == 0, "a checkpoint within a round holds its sequences"
            prompts = self._prompts(number)
            mine = {place: prompts[place] for place in range(self.ground.rank, len(prompts), self.ground.world)}
            made = drawn(mine, self.ground, self.source.sampling, alpha=self.source.alpha, number=number)
            self._generated, self._effort = sum(one.targets for one in made), self._took(made)
            self._round = number, sorted(self.ground.gather(made), key=lambda one: one.place)
        return self._round[1]

    def _took(self, made: Sequence[Rollout]) -> Effort:
        """Return what a round takes: both models draw, unless the teacher has no share, and both score."""
        lengths = [(one.example.prompt_length, one.targets) for one in made]
        student, teacher = (Effort.of_answers(who, lengths) for who in ("student", "teacher"))
        return student + student + teacher + (teacher if self.source.alpha else Effort())

    def _prompts(self, number: int) -> list[int]:
        """Return the rows whose prompts a round answers: the next ones of a new permutation at each pass."""
        return _stretch(len(self.ground.dataset), number * self.size, self.size, self.ground.train.seed, _PROMPTS)

    def _order(self, number: int, epoch: int, rollouts: Sequence[Rollout]) -> list[list[int]]:
        """Return which of a round's sequences each step of an inner epoch reads."""
        train = self.ground.train
        lengths = [len(one.ids) for one in rollouts]
        seed = draw_seed(train.seed, _ORDER, number)
        return epoch_steps(lengths, train.batch_size, seed=seed, epoch=epoch, window=train.length_window)

    def _texts(self, step: int) -> list[int]:
        """Return the rows of the second corpus that come with a step."""
        count = self.source.corpus
        if not count:
            return []
        assert self.ground.corpus is not None, "the source declares needs().corpus"
        return _stretch(len(self.ground.corpus), step * count, count, self.ground.train.seed, _CORPUS)

    def _text(self, row: int) -> Written:
        assert self.ground.corpus is not None, "the source declares needs().corpus"
        return Rollout.text(self.ground.corpus.examples[row])

    @property
    def generated(self) -> int:
        """Tokens that this process drew for the window given last."""
        return self._generated

    @property
    def effort(self) -> Effort:
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
        self._round = unpacked(state, self.ground.dataset.examples) if state else None


def _stretch(rows: int, start: int, count: int, *key: int) -> list[int]:
    """Return places start to start + count of an endless row of permutations, one after the other."""
    found: list[int] = []
    while len(found) < count:
        turn, at = divmod(start + len(found), rows)
        order = [step[0] for step in epoch_steps([1] * rows, 1, seed=draw_seed(*key), epoch=turn, window=1)]
        found += order[at : at + count - len(found)]
    return found
