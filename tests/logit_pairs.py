"""Pairs of teacher and student logits for property tests, from the tame to the wild."""

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from kdcli.losses.base import DistillLoss, Tokens
from kdcli.losses.build import build_objective
from kdcli.losses.rows import without_host_reads

DIVERGENCES = (
    "fkl",
    "rkl",
    "sym_kl",
    "sym_kl:w=0.2",
    "jsd",
    "jsd:beta=0.1",
    "jsd:beta=0.9,normalize=true",
    "skl",
    "srkl",
    "skl:alpha=0.6",
    "tvd",
    "uld",
    "ab",
    "ab:alpha=0.5,beta=0.5",
    "ab:alpha=1,beta=1",
    "akl",
    "akl:mu=0.8,head_rule=official",
    "akl:mu=0.3,flip=true",
)
"""Every loss of ours that is 0 where student and teacher agree, and nowhere below."""

TWO_SIDED = tuple(name for name in DIVERGENCES if name.partition(":")[0] in ("fkl", "rkl", "sym_kl", "akl"))
"""Those that are infinite where one side excludes what the other allows."""


def loss_of(spec: str, tau: float = 1.0, scaled: bool = True) -> DistillLoss:
    """Build a divergence at a temperature."""
    return build_objective(f"{spec}{',' if ':' in spec else ':'}temperature={tau!r},scale_tau2={scaled}")


def tokens(student: Tensor, teacher: Tensor, label: int = 0) -> Tokens:
    """Tokens that all have one label."""
    labels = torch.full((len(student),), label)
    return Tokens(labels, student, teacher, {"seq": torch.zeros_like(labels)})


def by_autograd(loss: DistillLoss, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Value and gradient of each token by autograd."""
    student = student.detach().clone().requires_grad_()
    value = loss.token_loss(tokens(student, teacher))
    return value.detach(), torch.autograd.grad(value.sum(), student)[0]


def in_closed_form(loss: DistillLoss, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Value and gradient of each token in closed form, or by autograd where the loss declines."""
    closed = loss.parts_and_grad(tokens(student.clone(), teacher.clone()))
    if closed is None:
        return by_autograd(loss, student, teacher)
    return torch.stack(list(closed[0].values())).sum(0), closed[1]


def at_once(loss: DistillLoss, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Value and gradient of each token as an accelerator takes them: no token is picked to be taken again."""
    with without_host_reads():
        return in_closed_form(loss, student, teacher)


def all_ways(loss: DistillLoss, student: Tensor, teacher: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Value and gradient by autograd, in closed form as on a CPU, and as on an accelerator."""
    return [way(loss, student, teacher) for way in (by_autograd, in_closed_form, at_once)]


KINDS = ("normal", "equal", "one_hot", "ties", "zeros", "subnormal", "near")


@st.composite
def pairs(draw, *, kinds=KINDS, filtered: bool = False, dtype=None, tokens_at_most: int = 3, vocab_at_most: int = 64):
    """``(student, teacher)`` of a few tokens; with ``filtered``, minus infinity on a strict subset of either."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (draw(st.integers(1, tokens_at_most)), draw(st.integers(2, vocab_at_most)))
    kind = draw(st.sampled_from(kinds))
    scale = 10.0 ** draw(st.floats(-4, 2.3 if kind == "normal" else 1))
    student, teacher = _logits(kind, rng, shape, scale)
    if filtered:
        for side in (student, teacher):
            drop = rng.random(shape) < 0.3
            drop[np.arange(shape[0]), rng.integers(0, shape[1], shape[0])] = False
            side[drop] = -np.inf
    chosen = dtype or draw(st.sampled_from((torch.float32, torch.float64)))
    return torch.tensor(student).to(chosen), torch.tensor(teacher).to(chosen)


def _logits(kind, rng, shape, scale):
    student, teacher = rng.standard_normal((2, *shape)) * scale
    if kind == "equal":
        student = teacher.copy()
    elif kind == "one_hot":
        student, teacher = (np.eye(shape[1])[rng.integers(0, shape[1], shape[0])] * side for side in (1e4, -1e4))
    elif kind == "ties":
        student, teacher = np.round(student), np.round(teacher)
    elif kind == "zeros":
        student, teacher = student * -0.0, teacher * 0.0
    elif kind == "subnormal":
        student, teacher = student * 1e-310, teacher * 1e-310
    elif kind == "near":
        student = teacher + 1e-3 * scale * rng.standard_normal(shape)
    return student, teacher


TEMPERATURES = st.floats(-2, 4).map(lambda power: 10.0**power)
