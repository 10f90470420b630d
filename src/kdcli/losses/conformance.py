"""Our value of each objective beside that of the implementations people compare with."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from kdcli.losses import published
from kdcli.losses.build import build_objective
from kdcli.losses.trial import Sample, values, with_facts

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
    return published.softmax(np.array(teacher)), published.softmax(np.array(student))


def _cross_entropies() -> Iterator[Row]:
    p, q = _pair()
    soft = published.cross_entropy(p, q)
    offset = "theirs leaves out the teacher's entropy, so it is not 0 at p = q; same gradient"
    yield Row("fkl", "the definition", _ours("fkl"), published.kl(p, q), "same")
    yield Row("fkl", 'DistiLLM "forward_kl", LMOps KD', _ours("fkl"), soft, offset)
    yield Row("soft_ce", 'DistiLLM "forward_kl", LMOps KD', _ours("soft_ce"), soft, "same, under its own name")
    skew = published.skew_cross_entropy(p, q, 0.1)
    yield Row("skl:alpha=0.1", "DistiLLM skewed forward KL", _ours("skl:alpha=0.1"), skew, offset)
    tempered = published.kl(published.softmax(np.array(TEACHER), 2.0), published.softmax(np.array(STUDENT), 2.0))
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
        yield Row(spec, name, _ours(spec), published.jsd(p, q, share), note)
    opposite = "the two defaults, both called GKD, are opposite ends"
    yield Row("jsd:beta=0.1", "ABKD default, lambda 0.1", _ours("jsd:beta=0.1"), published.jsd(p, q, 0.9), opposite)
    near, end = "jsd:beta=0.01", published.jsd(p, q, 0.0)
    jump = "theirs jumps to the forward KL at the end: about 1/beta larger; ours refuses beta 0 and 1"
    yield Row(near, "TRL GKD, beta 0", _ours(near), end, jump)
    yield Row("fkl", "TRL GKD, beta 0", _ours("fkl"), end, "same")
    yield Row("rkl", "TRL GKD, beta 1", _ours("rkl"), published.jsd(p, q, 1.0), "same")
    even = f"{near},normalize=true"
    yield Row(even, "TRL GKD, beta 0", _ours(even), end, "close: divided by beta (1 - beta) there is no jump")
    eps = "theirs adds an eps (1e-9 taken here) inside the logarithm: about that much off, never exactly 0"
    yield Row("jsd", "DSKD, eps in the logarithm", _ours("jsd"), published.jsd_with_eps(p, q, 1e-9), eps)
    mix = 0.9 * published.kl(p, q) + 0.1 * published.kl(q, p)
    yield Row("jsd:beta=0.9", 'ATKD "jsd"', _ours("jsd:beta=0.9"), mix, "theirs is 0.9 FKL + 0.1 RKL, no JSD")
    yield Row("sym_kl:w=0.1", 'ATKD "jsd"', _ours("sym_kl:w=0.1"), mix, "same, under its own name")


def _alpha_beta() -> Iterator[Row]:
    p, q = _pair()
    for a, b in ((0.2, 0.7), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.5, -0.5)):
        spec = f"ab:alpha={a},beta={b}"
        left = b if a == 0 else a
        regular = 0.0 not in (a, b, a + b) or abs(left) in (0.0, 1.0)
        note = "same" if regular else f"on this line theirs is {left:g} times the limit: it jumps"
        yield Row(spec, f"ABKD code, alpha {a:g}, beta {b:g}", _ours(spec), published.alpha_beta(p, q, a, b), note)


def _adaptive() -> Iterator[Row]:
    p, q = _pair(second=True)
    second = {"teacher": (TEACHER_2,), "student": (STUDENT_2,)}
    ours, official = _ours("akl", **second), published.akl(p, q, published.official_head(p, 0.5))
    yield Row("akl", "AKL paper", ours, published.akl(p, q, published.paper_head(p, 0.5)), "same")
    yield Row("akl", "AKL official code", ours, official, "theirs leaves the token that crosses mu in the tail")
    spelt = "akl:head_rule=official"
    yield Row(spelt, "AKL official code", _ours(spelt, **second), official, "same, with the rule named")
    tail = "akl:mu=0.8"
    for alpha, note in ((0.2, "same: their alpha bounds the tail, alpha = 1 - mu"), (0.8, "mu is not their alpha")):
        theirs = published.akl(p, q, published.dskd_head(p, alpha))
        yield Row(tail, f"DSKD, alpha {alpha:g}", _ours(tail, **second), theirs, note)
    copied = published.akl(p, q, published.paper_head(p, 0.5), forward=published.cross_entropy)
    higher = "theirs takes the cross-entropy for the FKL: higher by w times the teacher's entropy"
    yield Row("akl", "a third-party copy", ours, copied, higher)
    equal = published.akl(p, p, published.official_head(p, 0.5))
    same = _ours("akl", teacher=(TEACHER_2,), student=(TEACHER_2,))
    yield Row("akl", "AKL official code, p = q", same, equal, "theirs divides 0 by 0; ours takes w = 1/2")


def _decoupled() -> Iterator[Row]:
    p, q = _pair()
    target, diversity = published.target_part(p, q, 0), published.diversity_part(p, q, 0)
    yield Row("tkd", "mdistiller TCKD, ATKD TKD", _ours("tkd"), target, "same")
    yield Row("dkd_div", "mdistiller NCKD, ATKD DKD", _ours("dkd_div"), diversity, "same")
    hot_p, hot_q = (published.softmax(np.array(row), 4.0) for row in (TEACHER, STUDENT))
    zhao = 16 * (published.target_part(hot_p, hot_q, 0) + 8 * published.diversity_part(hot_p, hot_q, 0))
    spec = "decoupled:alpha=1,beta=8,temperature=4"
    yield Row(spec, "mdistiller DKD, CIFAR-100", _ours(spec), zhao, "same")
    certain = (110.0, 0.0, 0.0, 0.0, 0.0)
    lost = published.target_part(p, published.softmax(np.array(certain)), 0)
    note = "theirs takes log(1 - q_g) of a rounded 0: infinite; ours stays in log space"
    yield Row("tkd", "ATKD code, a certain student", _ours("tkd", student=(certain,)), lost, note)
    teachers, students = ([np.array(row) for row in rows] for rows in (BATCH_TEACHER, BATCH_STUDENT))
    theirs = published.atkd(teachers, students, list(BATCH_TARGETS), lam=0.2)
    ours = _ours("atkd", BATCH_TEACHER, BATCH_STUDENT, BATCH_TARGETS)
    yield Row("atkd", "ATKD code, the batch of five", ours, theirs, "same")


def _logits() -> Iterator[Row]:
    raw = float(((np.array(TEACHER) - np.array(STUDENT)) ** 2).mean())
    shift = "theirs also penalises a constant, which no softmax sees"
    yield Row("mse_logits", "raw logits matching", _ours("mse_logits"), raw, shift)
    plain = "mse_logits:centred=false"
    yield Row(plain, "raw logits matching", _ours(plain), raw, "same")
