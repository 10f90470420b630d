"""The third kind of metric: of what models say about tokens that a model sampled itself."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kdcli.metrics.base import FactMetric
from kdcli.metrics.curve import Curve
from kdcli.metrics.facts import facts_from_logits
from kdcli.metrics.score import Array, Better, Finish, Score

Sampler: TypeAlias = Literal["student", "teacher", "speculative"]
Index: TypeAlias = NDArray[np.int64]

_LONGEST = 2**20


@dataclass(frozen=True)
class OwnFacts:
    """Facts of the tokens of sampled answers, every example answered equally often.

    An answer's tokens are those sampled, its end token included.

    Args:
        facts: fact name -> values, shape ``[n]``.
        example: the example each token belongs to, ``[n]``.
        answer: which of the example's answers it belongs to, that is, which sampling seed's, ``[n]``.
        position: its place in the answer, 0 for the first token of the response, ``[n]``.
        examples: number of examples.
        answers: answers to each example.
        length: tokens an answer has at most.
    """

    facts: Mapping[str, Array]
    example: Index
    answer: Index
    position: Index
    examples: int
    answers: int
    length: int

    def per_answer(self, values: Array) -> Array:
        """Add up token values ``[n]`` within each answer, to ``[examples, answers]``."""
        return self._add(values, self.example * self.answers + self.answer, self.answers)

    def per_position(self, values: Array) -> Array:
        """Average token values ``[n]`` over an example's answers, to ``[examples, length]``; ended answers add 0."""
        return self._add(values, self.example * self.length + self.position, self.length) / self.answers

    def mean_over_tokens(self, name: str, values: Array, finish: Finish, better: Better) -> Score:
        """Return the score ``finish([sum, count])`` of token values ``[n]``.

        Several answers to one example are averaged first, so that the examples are what varies.
        """
        sums = np.stack([self.per_answer(values), self.per_answer(np.ones_like(values))], axis=-1)
        return Score(name, sums.mean(1), finish, better, answers=sums)

    def _add(self, values: Array, place: Index, width: int) -> Array:
        summed = np.bincount(place, values, minlength=self.examples * width)
        return summed.reshape(self.examples, width).astype(np.float64)


class OwnMetric(FactMetric):
    """A metric of what the models say about answers that a model sampled.

    Class attributes:
        samplers: whose answers it reads; "speculative" are the teacher's, drafted by the student.
        facts: names of the token facts it reads.
        plain_sampling: whether its definition takes answers sampled at temperature 1 and top-p 1.
    """

    eats: ClassVar[Literal["texts", "tokens", "own", "choices"]] = "own"
    samplers: ClassVar[tuple[Sampler, ...]] = ("student",)
    plain_sampling: ClassVar[bool] = False

    @classmethod
    def needs_teacher(cls) -> bool:
        """Whether a fact or a sample it reads cannot be had without a teacher."""
        return set(cls.samplers) != {"student"} or super().needs_teacher()

    def check_length(self, longest: int) -> None:
        """Refuse options that need longer answers than will be sampled; nothing by default.

        Args:
            longest: tokens an answer has at most.
        """

    @abstractmethod
    def measure(self, samples: Mapping[Sampler, OwnFacts]) -> list[Score]:
        """Score checked facts; see ``scores_from_own``."""

    def curves(self, samples: Mapping[Sampler, OwnFacts]) -> list[Curve]:
        """Return what is worth a picture, from the facts that ``measure`` takes; nothing by default."""
        return []

    def scores_from_own(self, samples: Mapping[Sampler, OwnFacts]) -> list[Score]:
        """Score facts of sampled answers.

        Args:
            samples: facts of the answers of each sampler in ``samplers``, on the same examples.

        Returns:
            the scores named in ``scores``.

        Raises:
            InputError: no tokens, a sampler or a fact missing, or shapes that do not fit.
            NumericsError: a fact is NaN.
        """
        return self._proven(self.measure(self.checked(samples)))

    def checked(self, samples: Mapping[Sampler, OwnFacts]) -> dict[Sampler, OwnFacts]:
        """Return the samples this metric reads, with its facts alone and in float64; errors as for the scores."""
        missing = [sampler for sampler in self.samplers if sampler not in samples]
        if missing:
            raise self._refuse("METRIC-06", f"the {missing[0]}'s samples are missing", "give them")
        return {sampler: self._checked(samples[sampler]) for sampler in self.samplers}

    def _checked(self, own: OwnFacts) -> OwnFacts:
        count = len(own.example)
        if count == 0:
            raise self._refuse("METRIC-04", "nothing to score: no sampled tokens", "sample answers")
        bounds = (("example", own.examples), ("answer", own.answers), ("position", own.length))
        for name, bound in bounds:
            index = getattr(own, name)
            if len(index) != count or index.min() < 0 or index.max() >= bound:
                what = f"{len(index)} {name} numbers, {index.min()} to {index.max()}, for {count} tokens and {bound}"
                raise self._refuse("METRIC-03", what, f"number every token's {name} from 0")
        facts = {name: self._fact(own.facts, name, count) for name in self.facts}
        return OwnFacts(facts, own.example, own.answer, own.position, own.examples, own.answers, own.length)

    def _compute(self, *, predictions: Sequence[Any], references: Sequence[Any], **_: Any) -> dict[str, float]:
        sides = {"teacher": references} if self.needs_teacher() else {"labels": references}
        count = len(predictions)
        row, first = np.arange(count), np.zeros(count, dtype=np.int64)
        facts = self._facts_of_rows(facts_from_logits(predictions, **sides))
        own = OwnFacts(facts, row, first, first, count, 1, 1)
        return {score.name: score.value for score in self.scores_from_own(dict.fromkeys(self.samplers, own))}

    def _facts_of_rows(self, facts: dict[str, Array]) -> dict[str, Array]:
        """Complete the facts that follow from logits; ``compute`` takes each row for an answer of one token."""
        return facts


def one_token(names: Iterable[str]) -> OwnFacts:
    """Return facts of one made-up token, every one a half, from which a metric tells what its scores are made of."""
    here = np.zeros(1, dtype=np.int64)
    return OwnFacts({name: np.array([0.5]) for name in names}, here, here, here, 1, 1, _LONGEST)
