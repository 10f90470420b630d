"""Exposure bias: how much of a student's error on its own answers comes from its earlier errors."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from kdcli.bounded import NOT_NEGATIVE
from kdcli.errors import InputError
from kdcli.metrics.curve import Curve, mean_with_interval
from kdcli.metrics.on_policy import OnPolicyMetric, SampledTokenStats, Sampler
from kdcli.metrics.score import Array, Better, Score, ratio


class ExposureBias(OnPolicyMetric):
    """Excess accumulated error of the student on its own prefixes over the teacher's, in percent.

    ``R(l) = sum_{t<=l} E_{y_<t ~ q}[KL(p || q)_t]`` on prefixes that the student q sampled,
    ``l eps(l)`` the same on prefixes that the teacher p sampled, and
    ``ex_acc_err(l) = 100 (R(l) - l eps(l)) / (l eps(l))``. KL(p || q) is over the whole vocabulary, t = 1
    is the first token of the response, and an answer that has ended adds 0. Several answers to an
    example are averaged; numerator and denominator are sums over examples. It is negative where
    the student's own prefixes are easier for it than the teacher's; 0 where both sums are 0.
    Prefixes follow the sampling settings: the definition takes temperature 1 and top-p 1.
    ``compute`` takes the student's logits ``[n, v]`` as predictions and the teacher's as references, each row
    the only token of an answer of both; without earlier tokens there is no exposure bias.

    Args:
        exposure_lengths: lengths l to give scores at, as ``ex_acc_err_l``, beside that of the longest answer.

    Reference: Gu et al. 2024 (MiniLLM), arXiv:2306.08543, section 3.3; Arora et al. 2022, arXiv:2204.01171.

    >>> ExposureBias().compute(predictions=[[1.0, 0.0]], references=[[0.0, 1.0]])["ex_acc_err"]
    0.0
    """

    name: ClassVar[str] = "exposure_bias"
    description: ClassVar[str] = "excess accumulated error on the student's own prefixes over the teacher's"
    scores: ClassVar[dict[str, Better]] = {"ex_acc_err": "lower"}
    settings: ClassVar[str] = "kl:teacher-student|prefix:own|first:counted|agg:ratio-of-sums|x100"
    options: ClassVar[dict[str, int | tuple[int, ...]]] = {"exposure_lengths": ()}
    samplers: ClassVar[tuple[Sampler, ...]] = ("student", "teacher")
    facts: ClassVar[tuple[str, ...]] = ("kl_from_teacher",)
    plain_sampling: ClassVar[bool] = True

    def measure(self, samples: Mapping[Sampler, SampledTokenStats]) -> list[Score]:
        """Accumulate the divergence over both models' answers up to each length."""
        longest = samples["student"].length
        self.check_length(longest)
        whole = _score("ex_acc_err", samples, longest)
        return [whole, *(_score(f"ex_acc_err_{length}", samples, length) for length in self._lengths())]

    def check_length(self, longest: int) -> None:
        """Refuse a length that no answer can have."""
        wrong = next((length for length in self._lengths() if not 1 <= length <= longest), None)
        if wrong is not None:
            what = f"exposure_lengths={wrong}, but answers have 1 to {longest} tokens"
            raise InputError("METRIC-02", what, where=f"metric {self.name}", fix="raise max_new_tokens")

    def curves(self, samples: Mapping[Sampler, SampledTokenStats]) -> list[Curve]:
        """Draw the excess over the answer's length, and the two accumulated errors it is made of."""
        errors = _accumulated(samples)
        seen = 1 + max(int(own.position.max()) for own in samples.values())
        errors, steps = errors[:, :seen], np.arange(1, seen + 1)
        ones = np.ones_like(errors[..., :1])
        sides = (("on the student's prefixes, R(l)", 0), ("on the teacher's prefixes, l eps(l)", 1))
        lines = [
            mean_with_interval(
                label, steps, np.concatenate([errors[..., side, None], ones], axis=-1), ratio(), bounds=NOT_NEGATIVE
            )
            for label, side in sides
        ]
        axis = "length of the answer l, tokens"
        return [
            Curve(
                "ex_acc_err",
                "Exposure bias",
                axis,
                "ExAccErr(l), %",
                (mean_with_interval("ExAccErr", steps, errors, excess),),
            ),
            Curve("accumulated_error", "Accumulated error", axis, "sum of KL(teacher‖student), nats", tuple(lines)),
        ]

    def _lengths(self) -> tuple[int, ...]:
        chosen = self.chosen["exposure_lengths"]
        return chosen if isinstance(chosen, tuple) else (int(chosen),)


def excess(sums: Array) -> Array:
    """Return ``100 (a - b) / b`` from sums a, b ``[..., 2]``; 0 where both are 0.

    >>> excess(np.array([3.0, 2.0])).item()
    50.0
    """
    ours, theirs = sums[..., 0], sums[..., 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((ours == 0.0) & (theirs == 0.0), 0.0, 100.0 * (ours - theirs) / theirs)


def _accumulated(samples: Mapping[Sampler, SampledTokenStats]) -> Array:
    """Return both sums of each example up to each length, ``[examples, length, 2]``."""
    sides = (samples["student"], samples["teacher"])
    return np.stack([own.per_position(own.facts["kl_from_teacher"]).cumsum(1) for own in sides], axis=-1)


def _score(name: str, samples: Mapping[Sampler, SampledTokenStats], length: int) -> Score:
    """Return the excess up to a length, from both sums of each answer, ``[examples, answers, 2]``."""
    sides = (samples["student"], samples["teacher"])
    values = [np.where(own.position < length, own.facts["kl_from_teacher"], 0.0) for own in sides]
    answers = np.stack([own.per_answer(one) for own, one in zip(sides, values, strict=True)], axis=-1)
    return Score(name, answers.mean(1), excess, "lower", answers=answers)
