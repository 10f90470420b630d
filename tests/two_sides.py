"""Hidden states and heads of a small student and teacher, and the sum of an objective over full logits."""

import torch

from kdcli.losses.base import Tokens
from kdcli.losses.build import build_objective
from kdcli.losses.token_facts import random_facts
from kdcli.models.head import Head
from kdcli.models.packing import Projection
from kdcli.registry.registry import LOSSES

TOKENS, VOCAB, WIDTH, TEACHER_WIDTH = 11, 17, 5, 7
ON_LOGITS = [name for name in LOSSES.table if build_objective(name).needs().logits]
SEQUENCE = torch.arange(TOKENS) // 4
SPECS = [*ON_LOGITS, "0.5*ce+0.5*akl:mu=0.6", "atkd:hard=jsd,easy=rkl", "fkl:temperature=2", "2*atkd+0.1*ce"]


def sides(
    dtype=torch.float64, bias=False, softcap=None, scale=1.0, rows=VOCAB
) -> tuple[Projection, Projection, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    student = Projection(
        draw(TOKENS, WIDTH).requires_grad_(),
        Head(draw(rows, WIDTH).requires_grad_(), draw(rows).requires_grad_() if bias else None, scale, softcap),
    )
    teacher = Projection(draw(TOKENS, TEACHER_WIDTH), Head(draw(rows, TEACHER_WIDTH)))
    labels = torch.randint(0, VOCAB, (TOKENS,), generator=generator)
    weights = torch.rand(TOKENS, generator=generator).to(dtype)
    return student, teacher, labels, weights


def supplied(loss):
    """Facts of a made-up source, where the loss asks for any."""
    needs = loss.needs()
    found = random_facts(needs.facts, needs.origins, SEQUENCE, torch.Generator().manual_seed(5))
    return {name: fact.double() if fact.is_floating_point() else fact for name, fact in found.items()}


def reference(spec, student, teacher, labels, weights, vocab=VOCAB):
    """The same sum with full logits and plain autograd."""
    loss = build_objective(spec)
    z = student.head.logits(student.hidden, vocab)
    t = teacher.head.logits(teacher.hidden, vocab)
    facts = {**supplied(loss), "seq": SEQUENCE}
    with torch.no_grad():
        facts |= loss.survey(Tokens(labels, z, t, facts))
        facts |= loss.plan(facts)
    return (loss.token_loss(Tokens(labels, z, t, facts)) * weights).sum()


def gradients(total, student):
    inputs = [student.hidden, student.head.weight] + ([student.head.bias] if student.head.bias is not None else [])
    return torch.autograd.grad(total, inputs)
