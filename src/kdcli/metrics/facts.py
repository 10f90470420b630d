"""What token metrics are computed from, and how those facts follow from logits."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdcli.metrics.score import Array


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
