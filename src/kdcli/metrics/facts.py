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
        facts of shape ``[n]``: ``label_logp``, ``top1_prob``, ``top1_correct`` and ``brier`` with
        labels; ``kl_from_teacher``, ``kl_to_teacher``, ``agree``, ``jsd`` and ``total_variation``
        with a teacher.

    >>> facts_from_logits([[0.0, 0.0]], labels=[1])["brier"].tolist()
    [0.5]
    """
    log_q = _log_softmax(student)
    facts: dict[str, Array] = {}
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
    return facts


def _label_facts(log_q: Array, labels: NDArray[np.int64]) -> dict[str, Array]:
    probability = np.exp(log_q)
    rows = np.arange(len(labels))
    error = probability.copy()
    error[rows, labels] -= 1.0
    return {
        "label_logp": log_q[rows, labels],
        "top1_prob": probability.max(-1),
        "top1_correct": (log_q.argmax(-1) == labels).astype(np.float64),
        "brier": (error**2).sum(-1),
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
