"""Objectives as published implementations compute them, from their formulas; one token, float64.

Written down independently of the losses they are compared with, on probabilities, and kept
as plain as possible. Quirks are reproduced on purpose, and named where they are.
"""

import math
from collections.abc import Callable

import numpy as np

Row = np.ndarray
"""Logits or probabilities of one token, ``[v]``."""


def softmax(logits: Row, tau: float = 1.0) -> Row:
    """Return probabilities at a temperature."""
    grown = np.exp((logits - logits.max()) / tau)
    return grown / grown.sum()


def kl(p: Row, q: Row) -> float:
    """Return KL(p || q)."""
    return float((p * np.log(p / q)).sum())


def cross_entropy(p: Row, q: Row) -> float:
    """Return -sum p log q: what several toolkits minimise under the name of forward KL."""
    return float(-(p * np.log(q)).sum())


def jsd(p: Row, q: Row, teacher_share: float) -> float:
    """Return the generalised Jensen-Shannon divergence, its ends apart.

    TRL replaces share 0 by the forward and share 1 by the reverse KL.
    """
    if teacher_share in (0.0, 1.0):
        return kl(p, q) if teacher_share == 0.0 else kl(q, p)
    mixture = teacher_share * p + (1 - teacher_share) * q
    return teacher_share * kl(p, mixture) + (1 - teacher_share) * kl(q, mixture)


def jsd_with_eps(p: Row, q: Row, eps: float) -> float:
    """Return DSKD's: half and half, eps added inside the mixture's logarithm."""
    mixture = np.log(0.5 * p + 0.5 * q + eps)
    return float(0.5 * (p * (np.log(p) - mixture)).sum() + 0.5 * (q * (np.log(q) - mixture)).sum())


def skew_cross_entropy(p: Row, q: Row, share: float) -> float:
    """Return DistiLLM's skew KL, which leaves out the teacher's entropy."""
    return cross_entropy(p, share * p + (1 - share) * q)


def alpha_beta(p: Row, q: Row, a: float, b: float) -> float:
    """Return ABKD's: on the axes it divides by the exponent once where the limit divides by its square."""
    if a == 0 and b == 0:
        return float(0.5 * (np.log(q / p) ** 2).sum())
    if a == 0:
        return float((q**b * np.log(q**b / p**b) - q**b + p**b).sum() / b)
    if b == 0:
        return float((p**a * np.log(p**a / q**a) - p**a + q**a).sum() / a)
    if a + b == 0:
        return float((np.log(q**a / p**a) + p**a / q**a - 1).sum() / a)
    terms = p**a * q**b - a / (a + b) * p ** (a + b) - b / (a + b) * q ** (a + b)
    return float(-terms.sum() / (a * b))


def akl(p: Row, q: Row, head: np.ndarray, *, forward: Callable[[Row, Row], float] = kl) -> float:
    """Return adaptive KL for a given head; 0/0 where the models are equal, as published code has it.

    A third-party copy takes :func:`cross_entropy` for the forward part.
    """
    gap = np.abs(p - q)
    with np.errstate(invalid="ignore"):
        weight = gap[head].sum() / gap.sum()
    return float(weight * forward(p, q) + (1 - weight) * kl(q, p))


def paper_head(p: Row, mu: float) -> np.ndarray:
    """Return the smallest set of mass mu: the token that crosses mu is in."""
    order = np.argsort(-p, kind="stable")
    return order[: int((np.cumsum(p[order]) < mu).sum()) + 1]


def official_head(p: Row, mu: float) -> np.ndarray:
    """Return the tokens up to mass mu, and always the first: the token that crosses mu is out."""
    order = np.argsort(-p, kind="stable")
    return order[: max(1, int((np.cumsum(p[order]) <= mu).sum()))]


def dskd_head(p: Row, alpha: float) -> np.ndarray:
    """Return DSKD's: alpha bounds the mass of the tail, summed from the least token up."""
    order = np.argsort(p, kind="stable")
    return order[int((np.cumsum(p[order]) <= alpha).sum()) :]


def target_part(p: Row, q: Row, target: int) -> float:
    """Return TKD in probability space, as ATKD's code does: infinite where the student is certain."""
    pair_p, pair_q = np.array([p[target], 1 - p[target]]), np.array([q[target], 1 - q[target]])
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.where(pair_p > 0, pair_p * np.log(pair_p / pair_q), 0.0).sum())


def diversity_part(p: Row, q: Row, target: int) -> float:
    """Return DKD, NCKD: the KL divergence of the rest, renormalised."""
    rest_p, rest_q = np.delete(p, target), np.delete(q, target)
    return kl(rest_p / rest_p.sum(), rest_q / rest_q.sum())


def atkd(teachers: list[Row], students: list[Row], targets: list[int], lam: float) -> float:
    """Return ATKD of a batch: easy is strictly below the lower median of the teacher's 1 - p_g."""
    p, q = [softmax(row) for row in teachers], [softmax(row) for row in students]
    uncertainty = [1 - row[target] for row, target in zip(p, targets, strict=True)]
    median = sorted(uncertainty)[(len(targets) - 1) // 2]
    both = list(zip(p, q, targets, uncertainty, strict=True))
    easy = [diversity_part(a, b, g) for a, b, g, unc in both if unc < median]
    hard = [target_part(a, b, g) + diversity_part(a, b, g) for a, b, g, unc in both if unc >= median]
    return lam * math.fsum(easy) / len(easy) + (1 - lam) * math.fsum(hard) / len(hard)
