"""A score as additive statistics: its value, intervals and paired differences come from one table."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdcli.bounded import ANYWHERE, Bounds

Better: TypeAlias = Literal["higher", "lower", "neither"]
Array: TypeAlias = NDArray[np.float64]
Finish: TypeAlias = Callable[[Array], Array]


@dataclass(frozen=True, eq=False)
class Resampler:
    """How a score without additive statistics answers to other draws of the examples.

    Args:
        value: from how often each example was drawn, ``[draws, examples]``, to the score of each draw, ``[draws]``.
        examples: number of examples.
    """

    value: Callable[[Array], Array]
    examples: int

    def whole(self) -> float:
        """The score of every example once."""
        return float(self.value(np.ones((1, self.examples)))[0])


@dataclass(frozen=True, eq=False)
class Score:
    """One number about a model, kept so that examples can be left out of it.

    Args:
        name: what tables call it.
        sums: additive statistics of each example, shape ``[examples, k]``; None for a score of
            the whole set that has no value per example.
        finish: turns summed statistics ``[..., k]`` into the score ``[...]``.
        better: which direction is better, or "neither".
        corpus: the value itself, where ``sums`` is None.
        notes: what a reader of the number must know, such as text the tokenizer dropped.
        answers: for a score of sampled texts, the statistics each example would have if all its
            answers were like this one, ``[examples, answers, k]``; their mean over answers is ``sums``.
        optional: whether it is left out where it counts no example, instead of stopping the evaluation.
        redraw: for a score of the whole set, what it would be on a resample of the examples.
        bounds: lowest and highest value that it can have; its metric says so.

    >>> Score("nll", np.array([[2.0, 1.0], [6.0, 3.0]]), ratio(), "lower").value
    2.0
    """

    name: str
    sums: Array | None
    finish: Finish
    better: Better
    corpus: float = math.nan
    notes: tuple[str, ...] = ()
    answers: Array | None = None
    optional: bool = False
    redraw: Resampler | None = None
    bounds: Bounds = ANYWHERE

    @property
    def value(self) -> float:
        """The score of all examples together; the same to the last bit in whatever order they come."""
        return self.corpus if self.sums is None else float(self.finish(total(self.sums)))

    @property
    def per_example(self) -> Array | None:
        """The score of each example alone, ``[examples]``; NaN where it has no tokens, None for a corpus score."""
        return None if self.sums is None else np.asarray(self.finish(self.sums), dtype=np.float64)


def redrawn(name: str, redraw: Resampler, better: Better = "lower") -> Score:
    """Return a score of the whole set that knows its value on other draws of the examples.

    >>> redrawn("n", Resampler(lambda drawn: drawn.sum(1), 3)).value
    3.0
    """
    return Score(name, None, np.asarray, better, corpus=redraw.whole(), redraw=redraw)


def total(sums: Array) -> Array:
    """Sum statistics ``[examples, k]`` over the examples without rounding error, ``[k]``.

    >>> total(np.array([[1e16], [1.0], [-1e16]])).tolist()
    [1.0]
    """
    return np.array([math.fsum(column) for column in sums.T], dtype=np.float64)


def ratio(scale: float = 1.0) -> Finish:
    """Return the finish ``scale * sums[..., 0] / sums[..., 1]``; NaN where nothing was counted.

    >>> ratio(100.0)(np.array([1.0, 4.0])).item()
    25.0
    """
    return partial(_ratio, scale=scale)


def over_answers(name: str, values: Array, better: Better, *, scale: float = 1.0, notes: tuple[str, ...] = ()) -> Score:
    """Return the plain mean over answers and examples of one value per answer.

    Args:
        name: of the score.
        values: one value per answer, shape ``[examples, answers]``.
        better: which direction is better.
        scale: factor of the mean.
        notes: what a reader of the number must know.

    >>> over_answers("rougeL", np.array([[0.0, 1.0], [0.5, 0.5]]), "higher", scale=100.0).value
    50.0
    """
    means = np.array([math.fsum(answers) / len(answers) for answers in values.tolist()])
    sums, answers = (np.stack([each, np.ones_like(each)], axis=-1) for each in (means, values))
    return Score(name, sums, ratio(scale), better, notes=notes, answers=answers)


def _ratio(sums: Array, scale: float) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(sums[..., 1] == 0.0, np.nan, scale * sums[..., 0] / sums[..., 1])


def add_up(values: Array, example: NDArray[np.int64], examples: int) -> Array:
    """Sum token values ``[n]`` or ``[n, k]`` within each example, to ``[examples, k]``.

    >>> add_up(np.array([1.0, 2.0, 4.0]), np.array([0, 1, 1]), 2).tolist()
    [[1.0], [6.0]]
    """
    columns = values[:, None] if values.ndim == 1 else values
    summed = [np.bincount(example, column, minlength=examples) for column in columns.T]
    return np.stack(summed, axis=-1).astype(np.float64)


def mean_and_count(values: Array, example: NDArray[np.int64], examples: int) -> Array:
    """Return the statistics of a mean over tokens: sum and count of each example, ``[examples, 2]``."""
    return add_up(np.stack([values, np.ones_like(values)], axis=-1), example, examples)


# What token metrics are computed from, and how those facts follow from logits.


def facts_from_logits(
    student: ArrayLike, labels: ArrayLike | None = None, teacher: ArrayLike | None = None
) -> dict[str, Array]:
    """Compute token facts from whole rows of logits, in float64; the plain form of the engine's survey.

    Args:
        student: the student's logits or log-probabilities, shape ``[n, v]``.
        labels: target ids, shape ``[n]``.
        teacher: the teacher's logits or log-probabilities, shape ``[n, v]``.

    Returns:
        facts of shape ``[n]``: ``top1_prob``; ``label_logp``, ``top1_correct`` and ``brier`` with
        labels; ``kl_from_teacher``, ``kl_to_teacher``, ``agree``, ``jsd``, ``total_variation`` and the
        facts in expectation over the teacher's labels, ``top1_by_teacher``, ``brier_by_teacher`` and
        ``nll_by_teacher``, with a teacher.

    >>> facts_from_logits([[0.0, 0.0]], labels=[1])["brier"].tolist()
    [0.5]
    """
    log_q = _log_softmax(student)
    facts: dict[str, Array] = {"top1_prob": np.exp(log_q.max(-1))}
    if labels is not None:
        facts |= _label_facts(log_q, np.asarray(labels, dtype=np.int64))
    if teacher is not None:
        log_p = _log_softmax(teacher)
        facts["kl_from_teacher"] = _kl(log_p, log_q)
        facts["kl_to_teacher"] = _kl(log_q, log_p)
        facts["agree"] = (log_p.argmax(-1) == log_q.argmax(-1)).astype(np.float64)
        middle = np.logaddexp(log_p, log_q) - np.log(2.0)
        facts["jsd"] = 0.5 * (_kl(log_p, middle) + _kl(log_q, middle))
        facts["total_variation"] = 0.5 * np.abs(np.exp(log_p) - np.exp(log_q)).sum(-1)
        facts |= _expected_facts(np.exp(log_p), log_q)
    return facts


def _label_facts(log_q: Array, labels: NDArray[np.int64]) -> dict[str, Array]:
    probability = np.exp(log_q)
    rows = np.arange(len(labels))
    error = probability.copy()
    error[rows, labels] -= 1.0
    return {
        "label_logp": log_q[rows, labels],
        "top1_correct": (log_q.argmax(-1) == labels).astype(np.float64),
        "brier": (error**2).sum(-1),
    }


def _expected_facts(p: Array, log_q: Array) -> dict[str, Array]:
    q = np.exp(log_q)
    with np.errstate(invalid="ignore"):
        surprise = np.where(p > 0.0, -p * log_q, 0.0)
    return {
        "top1_by_teacher": p[np.arange(len(p)), log_q.argmax(-1)],
        "brier_by_teacher": (q * (q - 2.0 * p)).sum(-1) + 1.0,
        "nll_by_teacher": surprise.sum(-1),
    }


def _log_softmax(logits: ArrayLike) -> Array:
    wide = np.asarray(logits, dtype=np.float64)
    shifted = wide - wide.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _kl(log_p: Array, log_q: Array) -> Array:
    """Sum p (log p - log q) + q - p over v: the added terms sum to 0 and keep every summand >= 0."""
    p, q = np.exp(log_p), np.exp(log_q)
    with np.errstate(invalid="ignore"):
        return np.where(p > 0.0, p * (log_p - log_q) + (q - p), q).sum(-1)
