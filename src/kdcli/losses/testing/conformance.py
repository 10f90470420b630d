"""Values of each objective, compared with those of published implementations."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from kdcli.losses.build import build_objective
from kdcli.losses.samples import Sample, values, with_facts

# Objectives as published implementations compute them, from their formulas; one token, float64.


Vector = np.ndarray
"""Logits or probabilities of one token, ``[v]``."""


def softmax(logits: Vector, tau: float = 1.0) -> Vector:
    """Return probabilities at a temperature."""
    grown = np.exp((logits - logits.max()) / tau)
    return grown / grown.sum()


def kl(p: Vector, q: Vector) -> float:
    """Return KL(p || q)."""
    return float((p * np.log(p / q)).sum())


def cross_entropy(p: Vector, q: Vector) -> float:
    """Return -sum p log q: what several toolkits minimise under the name of forward KL."""
    return float(-(p * np.log(q)).sum())


def jsd(p: Vector, q: Vector, teacher_share: float) -> float:
    """Return the generalised Jensen-Shannon divergence, its ends apart.

    TRL replaces share 0 by the forward and share 1 by the reverse KL.
    """
    if teacher_share in (0.0, 1.0):
        return kl(p, q) if teacher_share == 0.0 else kl(q, p)
    mixture = teacher_share * p + (1 - teacher_share) * q
    return teacher_share * kl(p, mixture) + (1 - teacher_share) * kl(q, mixture)


def jsd_with_eps(p: Vector, q: Vector, eps: float) -> float:
    """Return DSKD's: half and half, eps added inside the mixture's logarithm."""
    mixture = np.log(0.5 * p + 0.5 * q + eps)
    return float(0.5 * (p * (np.log(p) - mixture)).sum() + 0.5 * (q * (np.log(q) - mixture)).sum())


def skew_cross_entropy(p: Vector, q: Vector, share: float) -> float:
    """Return DistiLLM's skew KL, which leaves out the teacher's entropy."""
    return cross_entropy(p, share * p + (1 - share) * q)


def alpha_beta(p: Vector, q: Vector, a: float, b: float) -> float:
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


def akl(p: Vector, q: Vector, head: np.ndarray, *, forward: Callable[[Vector, Vector], float] = kl) -> float:
    """Return adaptive KL for a given head; 0/0 where the models are equal, as published code has it.

    A third-party copy takes :func:`cross_entropy` for the forward part.
    """
    gap = np.abs(p - q)
    with np.errstate(invalid="ignore"):
        weight = gap[head].sum() / gap.sum()
    return float(weight * forward(p, q) + (1 - weight) * kl(q, p))


def paper_head(p: Vector, mu: float) -> np.ndarray:
    """Return the smallest set of mass mu: the token that crosses mu is in."""
    order = np.argsort(-p, kind="stable")
    return order[: int((np.cumsum(p[order]) < mu).sum()) + 1]


def official_head(p: Vector, mu: float) -> np.ndarray:
    """Return the tokens up to mass mu, and always the first: the token that crosses mu is out."""
    order = np.argsort(-p, kind="stable")
    return order[: max(1, int((np.cumsum(p[order]) <= mu).sum()))]


def dskd_head(p: Vector, alpha: float) -> np.ndarray:
    """Return DSKD's: alpha bounds the mass of the tail, summed from the least token up."""
    order = np.argsort(p, kind="stable")
    return order[int((np.cumsum(p[order]) <= alpha).sum()) :]


def target_part(p: Vector, q: Vector, target: int) -> float:
    """Return TKD in probability space, as ATKD's code does: infinite where the student is certain."""
    pair_p, pair_q = np.array([p[target], 1 - p[target]]), np.array([q[target], 1 - q[target]])
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.where(pair_p > 0, pair_p * np.log(pair_p / pair_q), 0.0).sum())


def diversity_part(p: Vector, q: Vector, target: int) -> float:
    """Return DKD, NCKD: the KL divergence of the rest, renormalised."""
    rest_p, rest_q = np.delete(p, target), np.delete(q, target)
    return kl(rest_p / rest_p.sum(), rest_q / rest_q.sum())


def atkd(teachers: list[Vector], students: list[Vector], targets: list[int], lam: float) -> float:
    """Return ATKD of a batch: easy is strictly below the lower median of the teacher's 1 - p_g."""
    p, q = [softmax(row) for row in teachers], [softmax(row) for row in students]
    uncertainty = [1 - row[target] for row, target in zip(p, targets, strict=True)]
    median = sorted(uncertainty)[(len(targets) - 1) // 2]
    both = list(zip(p, q, targets, uncertainty, strict=True))
    easy = [diversity_part(a, b, g) for a, b, g, unc in both if unc < median]
    hard = [target_part(a, b, g) + diversity_part(a, b, g) for a, b, g, unc in both if unc >= median]
    return lam * math.fsum(easy) / len(easy) + (1 - lam) * math.fsum(hard) / len(hard)


TEACHER, STUDENT = (2.0, 1.0, 0.0, -1.0, -2.0), (0.5, 1.5, 0.0, -0.5, -1.0)
TEACHER_2, STUDENT_2 = (1.0, 0.8, 0.5, 0.0, -0.5), (0.2, 1.4, 0.9, -0.3, 0.4)
BATCH_TEACHER = (TEACHER, TEACHER_2, TEACHER, TEACHER_2, TEACHER)
BATCH_STUDENT = (STUDENT, STUDENT_2, STUDENT[::-1], STUDENT_2[::-1], (0.0,) * 5)
BATCH_TARGETS = (0, 1, 1, 2, 3)


@dataclass(frozen=True)
class Row:
    """One comparison, on the mean over the tokens of a fixed input.

    Args:
        objective: our spec string.
        variant: whose value stands beside ours.
        ours: our value.
        published: theirs, from their formula.
        note: what the difference is, or that there is none.
    """

    objective: str
    variant: str
    ours: float
    published: float
    note: str

    @property
    def agrees(self) -> bool:
        """Whether the two values are the same to 1e-9."""
        return math.isclose(self.ours, self.published, rel_tol=1e-9, abs_tol=1e-9)


def conformance() -> list[Row]:
    """Return every comparison: those that agree, and those that do not, with the reason.

    >>> rows = conformance()
    >>> [round(row.ours, 4) for row in rows if row.variant.startswith("ATKD code, the batch")]
    [0.9337]
    """
    return [*_cross_entropies(), *_jensen_shannon(), *_alpha_beta(), *_adaptive(), *_decoupled(), *_logits()]


def _ours(spec: str, teacher: tuple = (TEACHER,), student: tuple = (STUDENT,), targets: tuple = (0,)) -> float:
    data = Sample(
        torch.tensor(student, dtype=torch.float64),
        torch.tensor(teacher, dtype=torch.float64),
        torch.tensor(targets),
        {"seq": torch.zeros(len(targets), dtype=torch.int64)},
    )
    loss = build_objective(spec)
    return values(loss, with_facts(loss, data)).mean().item()


def _pair(second: bool = False) -> tuple[np.ndarray, np.ndarray]:
    teacher, student = (TEACHER_2, STUDENT_2) if second else (TEACHER, STUDENT)
    return softmax(np.array(teacher)), softmax(np.array(student))


def _cross_entropies() -> Iterator[Row]:
    p, q = _pair()
    soft = cross_entropy(p, q)
    offset = "theirs leaves out the teacher's entropy, so it is not 0 at p = q; same gradient"
    yield Row("fkl", "the definition", _ours("fkl"), kl(p, q), "same")
    yield Row("fkl", 'DistiLLM "forward_kl", LMOps KD', _ours("fkl"), soft, offset)
    yield Row("soft_ce", 'DistiLLM "forward_kl", LMOps KD', _ours("soft_ce"), soft, "same, under its own name")
    skew = skew_cross_entropy(p, q, 0.1)
    yield Row("skl:alpha=0.1", "DistiLLM skewed forward KL", _ours("skl:alpha=0.1"), skew, offset)
    tempered = kl(softmax(np.array(TEACHER), 2.0), softmax(np.array(STUDENT), 2.0))
    scaled = _ours("fkl:temperature=2")
    yield Row("fkl:temperature=2", "f-distill, mdistiller", scaled, 4 * tempered, "same: both multiply by tau^2")
    yield Row("fkl:temperature=2", "DSKD, TRL", scaled, tempered, "theirs has no tau^2: gradients shrink as tau grows")
    plain = "fkl:temperature=2,scale_tau2=false"
    yield Row(plain, "DSKD, TRL", _ours(plain), tempered, "same, with the factor off")


def _jensen_shannon() -> Iterator[Row]:
    p, q = _pair()
    for spec, name, share in (
        ("jsd:beta=0.5", "TRL GKD, beta 0.5", 0.5),
        ("jsd:beta=0.1", "DistiLLM default, lambda 0.9", 0.1),
        ("jsd:beta=0.9", "ABKD default, lambda 0.1", 0.9),
    ):
        note = "same" if share == 0.5 else "same: their lambda weighs the student, beta the teacher"
        yield Row(spec, name, _ours(spec), jsd(p, q, share), note)
    opposite = "the two defaults, both called GKD, are opposite ends"
    yield Row("jsd:beta=0.1", "ABKD default, lambda 0.1", _ours("jsd:beta=0.1"), jsd(p, q, 0.9), opposite)
    near, end = "jsd:beta=0.01", jsd(p, q, 0.0)
    jump = "theirs jumps to the forward KL at the end: about 1/beta larger; ours refuses beta 0 and 1"
    yield Row(near, "TRL GKD, beta 0", _ours(near), end, jump)
    yield Row("fkl", "TRL GKD, beta 0", _ours("fkl"), end, "same")
    yield Row("rkl", "TRL GKD, beta 1", _ours("rkl"), jsd(p, q, 1.0), "same")
    even = f"{near},normalize=true"
    yield Row(even, "TRL GKD, beta 0", _ours(even), end, "close: divided by beta (1 - beta) there is no jump")
    eps = "theirs adds an eps (1e-9 taken here) inside the logarithm: about that much off, never exactly 0"
    yield Row("jsd", "DSKD, eps in the logarithm", _ours("jsd"), jsd_with_eps(p, q, 1e-9), eps)
    mix = 0.9 * kl(p, q) + 0.1 * kl(q, p)
    yield Row("jsd:beta=0.9", 'ATKD "jsd"', _ours("jsd:beta=0.9"), mix, "theirs is 0.9 FKL + 0.1 RKL, no JSD")
    yield Row("sym_kl:w=0.1", 'ATKD "jsd"', _ours("sym_kl:w=0.1"), mix, "same, under its own name")


def _alpha_beta() -> Iterator[Row]:
    p, q = _pair()
    for a, b in ((0.2, 0.7), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.5, -0.5)):
        spec = f"ab:alpha={a},beta={b}"
        left = b if a == 0 else a
        regular = 0.0 not in (a, b, a + b) or abs(left) in (0.0, 1.0)
        note = "same" if regular else f"on this line theirs is {left:g} times the limit: it jumps"
        yield Row(spec, f"ABKD code, alpha {a:g}, beta {b:g}", _ours(spec), alpha_beta(p, q, a, b), note)


def _adaptive() -> Iterator[Row]:
    p, q = _pair(second=True)
    second = {"teacher": (TEACHER_2,), "student": (STUDENT_2,)}
    ours, official = _ours("akl", **second), akl(p, q, official_head(p, 0.5))
    yield Row("akl", "AKL paper", ours, akl(p, q, paper_head(p, 0.5)), "same")
    yield Row("akl", "AKL official code", ours, official, "theirs leaves the token that crosses mu in the tail")
    spelt = "akl:head_rule=official"
    yield Row(spelt, "AKL official code", _ours(spelt, **second), official, "same, with the rule named")
    tail = "akl:mu=0.8"
    for alpha, note in ((0.2, "same: their alpha bounds the tail, alpha = 1 - mu"), (0.8, "mu is not their alpha")):
        theirs = akl(p, q, dskd_head(p, alpha))
        yield Row(tail, f"DSKD, alpha {alpha:g}", _ours(tail, **second), theirs, note)
    copied = akl(p, q, paper_head(p, 0.5), forward=cross_entropy)
    higher = "theirs takes the cross-entropy for the FKL: higher by w times the teacher's entropy"
    yield Row("akl", "a third-party copy", ours, copied, higher)
    equal = akl(p, p, official_head(p, 0.5))
    same = _ours("akl", teacher=(TEACHER_2,), student=(TEACHER_2,))
    yield Row("akl", "AKL official code, p = q", same, equal, "theirs divides 0 by 0; ours takes w = 1/2")


def _decoupled() -> Iterator[Row]:
    p, q = _pair()
    target, diversity = target_part(p, q, 0), diversity_part(p, q, 0)
    yield Row("tkd", "mdistiller TCKD, ATKD TKD", _ours("tkd"), target, "same")
    yield Row("dkd_div", "mdistiller NCKD, ATKD DKD", _ours("dkd_div"), diversity, "same")
    hot_p, hot_q = (softmax(np.array(row), 4.0) for row in (TEACHER, STUDENT))
    zhao = 16 * (target_part(hot_p, hot_q, 0) + 8 * diversity_part(hot_p, hot_q, 0))
    spec = "decoupled:alpha=1,beta=8,temperature=4"
    yield Row(spec, "mdistiller DKD, CIFAR-100", _ours(spec), zhao, "same")
    certain = (110.0, 0.0, 0.0, 0.0, 0.0)
    lost = target_part(p, softmax(np.array(certain)), 0)
    note = "theirs takes log(1 - q_g) of a rounded 0: infinite; ours stays in log space"
    yield Row("tkd", "ATKD code, a certain student", _ours("tkd", student=(certain,)), lost, note)
    teachers, students = ([np.array(row) for row in rows] for rows in (BATCH_TEACHER, BATCH_STUDENT))
    theirs = atkd(teachers, students, list(BATCH_TARGETS), lam=0.2)
    ours = _ours("atkd", BATCH_TEACHER, BATCH_STUDENT, BATCH_TARGETS)
    yield Row("atkd", "ATKD code, the batch of five", ours, theirs, "same")


def _logits() -> Iterator[Row]:
    raw = float(((np.array(TEACHER) - np.array(STUDENT)) ** 2).mean())
    shift = "theirs also penalises a constant, which no softmax sees"
    yield Row("mse_logits", "raw logits matching", _ours("mse_logits"), raw, shift)
    plain = "mse_logits:centred=false"
    yield Row(plain, "raw logits matching", _ours(plain), raw, "same")
