"""Metrics of tokens that a model sampled itself."""

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kdcli.bounded import NOT_NEGATIVE, PERCENT, SHARE, Bounds
from kdcli.metrics.base import FactMetric
from kdcli.metrics.calibration import bin_sums, calibration_error, check_bins, reliability_curve
from kdcli.metrics.curve import Curve, Series, mean_with_interval
from kdcli.metrics.score import Array, Better, Finish, Score, facts_from_logits, ratio
from kdcli.metrics.signature import Option

Sampler: TypeAlias = Literal["student", "teacher", "speculative"]
Index: TypeAlias = NDArray[np.int64]

_LONGEST = 2**20


@dataclass(frozen=True)
class SampledTokenStats:
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


class OnPolicyMetric(FactMetric):
    """A metric of what the models say about answers that a model sampled.

    Class attributes:
        samplers: whose answers it reads; "speculative" are the teacher's, drafted by the student.
        facts: names of the token facts it reads.
        plain_sampling: whether its definition takes answers sampled at temperature 1 and top-p 1.
    """

    input_kind: ClassVar[Literal["texts", "tokens", "own", "choices"]] = "own"
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
    def measure(self, samples: Mapping[Sampler, SampledTokenStats]) -> list[Score]:
        """Score checked facts; see ``scores_from_own``."""

    def curves(self, samples: Mapping[Sampler, SampledTokenStats]) -> list[Curve]:
        """Return what is worth a picture, from the facts that ``measure`` takes; nothing by default."""
        return []

    def scores_from_own(self, samples: Mapping[Sampler, SampledTokenStats]) -> list[Score]:
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

    def checked(self, samples: Mapping[Sampler, SampledTokenStats]) -> dict[Sampler, SampledTokenStats]:
        """Return the samples this metric reads, with its facts alone and in float64; errors as for the scores."""
        missing = [sampler for sampler in self.samplers if sampler not in samples]
        if missing:
            raise self._refuse("METRIC-06", f"the {missing[0]}'s samples are missing", "give them")
        return {sampler: self._checked(samples[sampler]) for sampler in self.samplers}

    def _checked(self, own: SampledTokenStats) -> SampledTokenStats:
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
        return SampledTokenStats(facts, own.example, own.answer, own.position, own.examples, own.answers, own.length)

    def _compute(self, *, predictions: Sequence[Any], references: Sequence[Any], **_: Any) -> dict[str, float]:
        sides = {"teacher": references} if self.needs_teacher() else {"labels": references}
        count = len(predictions)
        row, first = np.arange(count), np.zeros(count, dtype=np.int64)
        facts = self._facts_of_rows(facts_from_logits(predictions, **sides))
        own = SampledTokenStats(facts, row, first, first, count, 1, 1)
        return {score.name: score.value for score in self.scores_from_own(dict.fromkeys(self.samplers, own))}

    def _facts_of_rows(self, facts: dict[str, Array]) -> dict[str, Array]:
        """Complete the facts that follow from logits; ``compute`` takes each row for an answer of one token."""
        return facts


def one_token(names: Iterable[str]) -> SampledTokenStats:
    """Return facts of one made-up token, every one a half, from which a metric shows how its scores are aggregated."""
    here = np.zeros(1, dtype=np.int64)
    return SampledTokenStats({name: np.array([0.5]) for name in names}, here, here, here, 1, 1, _LONGEST)


# Calibration on the student's own answers, by the teacher's probabilities.


class OnPolicyCalibration(OnPolicyMetric):
    """Expected calibration error of the top token on the student's own answers, with Brier score and NLL.

    A sampled token is no label: a model is right about its own samples as often as it says. So the label
    is what the teacher p would say next, in expectation: with x the student's likeliest token,
    ``on_policy_ece = sum_k |B_k|/n |mean p(x) - mean q(x)|`` over equal-width bins of ``q(x)``,
    ``on_policy_brier = mean sum_v q_v (q_v - 2 p_v) + 1`` and ``on_policy_nll = mean -sum_v p_v log q_v``, in nats.
    They are what ``ece`` gives on the references, had the teacher written the next token after each prefix.
    ``compute`` takes the student's logits ``[n, v]`` as predictions, the teacher's as references.

    Args:
        bins: number of bins.

    >>> scores = OnPolicyCalibration().compute(predictions=[[0.0, 0.0]], references=[[0.0, -1e9]])
    >>> scores["on_policy_ece"], scores["on_policy_brier"]
    (0.5, 0.5)
    """

    name: ClassVar[str] = "on_policy_calibration"
    description: ClassVar[str] = "gap between confidence and the teacher's probability, on the student's own answers"
    scores: ClassVar[dict[str, Better]] = {
        "on_policy_ece": "lower",
        "on_policy_brier": "lower",
        "on_policy_nll": "lower",
    }
    bounds: ClassVar[dict[str, Bounds]] = {
        "on_policy_ece": SHARE,
        "on_policy_brier": (0.0, 2.0),
        "on_policy_nll": NOT_NEGATIVE,
    }
    settings: ClassVar[str] = "top:1|label:teacher|prefix:student|width:equal|norm:l1|tau:1|agg:token-mean"
    options: ClassVar[dict[str, int]] = {"bins": 10}
    samplers: ClassVar[tuple[Sampler, ...]] = ("student",)
    facts: ClassVar[tuple[str, ...]] = ("top1_prob", "top1_by_teacher", "brier_by_teacher", "nll_by_teacher")

    def __init__(self, **options: Option) -> None:
        super().__init__(**options)
        check_bins(self.chosen["bins"], self.name)

    def measure(self, samples: Mapping[Sampler, SampledTokenStats]) -> list[Score]:
        """Add up each bin of each answer, and the two proper scores."""
        own = samples["student"]
        bins = self._bins(own)
        return [
            Score("on_policy_ece", bins.mean(1), calibration_error, "lower", answers=bins),
            own.mean_over_tokens("on_policy_brier", own.facts["brier_by_teacher"], ratio(), "lower"),
            own.mean_over_tokens("on_policy_nll", own.facts["nll_by_teacher"], ratio(), "lower"),
        ]

    def curves(self, samples: Mapping[Sampler, SampledTokenStats]) -> list[Curve]:
        """Return the reliability diagram of the sampled tokens, with the teacher's probability as accuracy."""
        sums = self._bins(samples["student"]).sum(1)
        error = float(calibration_error(sums.sum(0)))
        title = f"Calibration on own answers, ECE {error:.3f}"
        return [reliability_curve("reliability_own", title, (expected_series("by the teacher", sums),))]

    def _bins(self, own: SampledTokenStats) -> Array:
        """Return count, confidence and expected correctness of each bin, ``[examples, answers, 3 * bins]``."""
        bins, answer = self.chosen["bins"], own.example * own.answers + own.answer
        sums = bin_sums(own.facts["top1_prob"], own.facts["top1_by_teacher"], answer, own.examples * own.answers, bins)
        return sums.reshape(own.examples, own.answers, 3 * bins)


def expected_series(label: str, sums: Array) -> Series:
    """Return the bins that hold predictions, with the jackknife's interval over examples.

    Args:
        label: what the picture calls it.
        sums: count, confidence and expected correctness of each bin, ``[examples, 3 * bins]``.

    >>> expected_series("", np.array([[0.0, 0.0, 0.0, 4.0, 3.0, 1.5]])).y
    (0.375,)
    """
    parts = sums.reshape(len(sums), -1, 3)
    edges = np.arange(parts.shape[1] + 1) / parts.shape[1]
    number = parts[..., 0].sum(0)
    held = number > 0
    confidence = parts[..., 1].sum(0)[held] / number[held]
    line = mean_with_interval(label, confidence, parts[:, held][..., [2, 0]], ratio(), number[held], SHARE)
    return replace(line, left=tuple(edges[:-1][held].tolist()), right=tuple(edges[1:][held].tolist()))


# Agreement of student and teacher on the student's own answers.


class OnPolicyDistance(OnPolicyMetric):
    """Agreement, Jensen-Shannon divergence, total variation and acceptance rate on the student's own answers.

    The same quantities as ``agreement`` and ``teacher_distance``, at the tokens of answers that the
    student sampled instead of the references'. ``on_policy_acceptance = 100 (1 - tvd)`` is the expected share
    of drafted tokens that the teacher accepts after prefixes like these.
    ``compute`` takes the student's logits ``[n, v]`` as predictions, the teacher's as references.

    Reference: Leviathan et al. 2023, arXiv:2211.17192, theorem 3.5.

    >>> OnPolicyDistance().compute(predictions=[[0.0, 0.0]], references=[[0.0, -1e9]])["on_policy_acceptance"]
    50.0
    """

    name: ClassVar[str] = "on_policy_distance"
    description: ClassVar[str] = "top token, JSD, total variation and acceptance on the student's own answers"
    scores: ClassVar[dict[str, Better]] = {
        "on_policy_agreement": "higher",
        "on_policy_jsd": "lower",
        "on_policy_tvd": "lower",
        "on_policy_acceptance": "higher",
    }
    bounds: ClassVar[dict[str, Bounds]] = {
        "on_policy_agreement": PERCENT,
        "on_policy_jsd": (0.0, math.log(2.0)),
        "on_policy_tvd": SHARE,
        "on_policy_acceptance": PERCENT,
    }
    settings: ClassVar[str] = "prefix:student|tau:1|agg:token-mean"
    samplers: ClassVar[tuple[Sampler, ...]] = ("student",)
    facts: ClassVar[tuple[str, ...]] = ("agree", "jsd", "total_variation")

    def measure(self, samples: Mapping[Sampler, SampledTokenStats]) -> list[Score]:
        """Sum each quantity over each answer."""
        own = samples["student"]
        tvd = own.facts["total_variation"]
        return [
            own.mean_over_tokens("on_policy_agreement", own.facts["agree"], ratio(100.0), "higher"),
            own.mean_over_tokens("on_policy_jsd", own.facts["jsd"], ratio(), "lower"),
            own.mean_over_tokens("on_policy_tvd", tvd, ratio(), "lower"),
            own.mean_over_tokens("on_policy_acceptance", 1.0 - tvd, ratio(100.0), "higher"),
        ]


# Divergence between student and teacher on the student's own answers.


_DIRECTIONS = {"kl_from_teacher": "KL(teacher‖student)", "kl_to_teacher": "KL(student‖teacher)"}


class OnPolicyKL(OnPolicyMetric):
    """KL divergence per token of answers the student sampled, in nats, both ways.

    ``on_policy_kl_from_teacher`` is KL(teacher‖student), ``on_policy_kl_to_teacher`` is KL(student‖teacher), each the
    mean over the tokens of the student's own answers, first and end token included. The curve gives
    both by position: at position t over the answers that have a token there, which become fewer.
    ``compute`` takes the student's logits ``[n, v]`` as predictions, the teacher's as references.

    >>> OnPolicyKL().compute(predictions=[[1.0, 0.0]], references=[[1.0, 0.0]])["on_policy_kl_to_teacher"]
    0.0
    """

    name: ClassVar[str] = "on_policy_kl"
    description: ClassVar[str] = "KL divergence from and to the teacher on the student's own answers"
    scores: ClassVar[dict[str, Better]] = {"on_policy_kl_from_teacher": "lower", "on_policy_kl_to_teacher": "lower"}
    bounds: ClassVar[dict[str, Bounds]] = {
        "on_policy_kl_from_teacher": NOT_NEGATIVE,
        "on_policy_kl_to_teacher": NOT_NEGATIVE,
    }
    settings: ClassVar[str] = "unit:nats|prefix:student|tau:1|agg:token-mean"
    samplers: ClassVar[tuple[Sampler, ...]] = ("student",)
    facts: ClassVar[tuple[str, ...]] = ("kl_from_teacher", "kl_to_teacher")

    def measure(self, samples: Mapping[Sampler, SampledTokenStats]) -> list[Score]:
        """Sum both divergences of each answer."""
        own = samples["student"]
        return [own.mean_over_tokens(f"on_policy_{name}", own.facts[name], ratio(), "lower") for name in self.facts]

    def curves(self, samples: Mapping[Sampler, SampledTokenStats]) -> list[Curve]:
        """Draw both divergences by position in the answer."""
        own = samples["student"]
        seen = 1 + int(own.position.max())
        tokens = own.per_position(np.ones(len(own.position)))[:, :seen]
        count, steps = np.bincount(own.position, minlength=seen), np.arange(1, seen + 1)
        lines = [
            mean_with_interval(
                label,
                steps,
                np.stack([own.per_position(own.facts[name])[:, :seen], tokens], -1),
                ratio(),
                count,
                NOT_NEGATIVE,
            )
            for name, label in _DIRECTIONS.items()
        ]
        title = "Divergence along the student's own answers"
        return [Curve("on_policy_kl", title, "position in the answer, tokens", "KL divergence, nats", tuple(lines))]
