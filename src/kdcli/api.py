"""The library: objectives inside any trainer."""

from typing import TypeAlias

import torch
from torch import Tensor, nn

from kdcli.losses.base import DistillLoss, Tokens
from kdcli.losses.build import build_objective
from kdcli.models.head import Head
from kdcli.models.packing import Projection, Workspace, find_valid
from kdcli.training.fused_loss import FusedInputs, fused_sum

Objective: TypeAlias = str | DistillLoss
HeadLike: TypeAlias = Tensor | nn.Linear | Head


def objective(spec: str) -> DistillLoss:
    """Build an objective from its spec string.

    Args:
        spec: such as ``"0.5*ce+0.5*akl:mu=0.6"``.

    Returns:
        a frozen, picklable loss whose fields are its options.

    Raises:
        kdcli.errors.UsageError: the spec cannot be read, or names an unknown loss or option.

    >>> objective("akl:mu=0.6").mu
    0.6
    """
    return build_objective(spec)


def token_losses(objective: Objective, student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor) -> Tensor:
    """Return the objective's value for each token.

    Args:
        objective: a spec string or a built loss.
        student_logits: ``(B, T, V)``, aligned to ``labels``: position i holds the prediction of ``labels[:, i]``.
        teacher_logits: ``(B, T, V)``; ``(B, T, W)`` for an objective that stands a teacher of another tokenizer,
            such as uld; None for one without a teacher.
        labels: ``(B, T)`` target ids, -100 = ignore.

    Returns:
        ``(B, T)`` in at least fp32, 0 where ignored, differentiable in ``student_logits``.

    Raises:
        ValueError: shapes disagree, or the objective needs a teacher and none is given.

    >>> logits = torch.tensor([[[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]]])
    >>> token_losses("fkl", torch.zeros(1, 2, 3), logits, torch.tensor([[0, -100]])).tolist()[0][1]
    0.0
    """
    loss = _built(objective)
    _check_logits(loss, student_logits, teacher_logits, labels)
    packing = find_valid(labels)
    teacher = None if teacher_logits is None or not loss.needs().teacher else packing.pack(teacher_logits).detach()
    tok = Tokens(packing.labels, packing.pack(student_logits), teacher, {"seq": packing.sequence})
    if not packing.count:
        return student_logits[..., 0].float() * 0.0
    with torch.no_grad():
        facts = {**tok.facts, **(loss.survey(tok) if loss.needs().survey != "none" else {})}
        facts |= loss.plan(facts)
    values = loss.token_loss(Tokens(tok.labels, tok.student, tok.teacher, facts))
    return packing.unpack(values, labels.shape)


def fused_loss(
    objective: Objective,
    student_hidden: Tensor,
    student_head: HeadLike,
    teacher_hidden: Tensor | None,
    teacher_head: HeadLike | None,
    labels: Tensor,
    *,
    vocab: int | None = None,
    teacher_vocab: int | None = None,
    chunk_tokens: int | None = None,
) -> Tensor:
    """Return the mean loss over valid tokens without ever holding full-vocabulary logits.

    Heads and loss are taken chunk by chunk, together with their gradients; the result is one
    differentiable node over ``student_hidden`` and the student's head.

    Args:
        objective: a spec string or a built loss.
        student_hidden: ``(B, T, d)`` last hidden states, aligned to ``labels`` as in :func:`token_losses`.
        student_head: weight ``(V, d)``, a linear module, or a :class:`kdcli.models.head.Head`.
        teacher_hidden: ``(B, T, d')``; None for an objective without a teacher.
        teacher_head: the teacher's head.
        labels: ``(B, T)`` target ids, -100 = ignore.
        vocab: restrict both heads to the first so many ids, for padded vocabularies.
        teacher_vocab: restrict the teacher's head apart, for an objective that stands a teacher of another tokenizer.
        chunk_tokens: tokens whose logits exist at once; by default chosen by device.

    Returns:
        a scalar; 0, still connected to the graph, when no token is valid.

    Raises:
        ValueError: the heads' vocabularies differ and ``vocab`` is not given, or the teacher is missing.

    >>> hidden, head = torch.eye(2).unsqueeze(0), torch.eye(2)
    >>> round(fused_loss("ce", hidden, head, None, None, torch.tensor([[0, 1]])).item(), 6)
    0.313262
    """
    loss, head = _built(objective), _head(student_head)
    packing = find_valid(labels)
    teacher = None
    if loss.needs().teacher:
        if teacher_hidden is None or teacher_head is None:
            raise ValueError(f"{loss.name} compares with a teacher: expected teacher_hidden and teacher_head, got None")
        teacher = Projection(packing.pack(teacher_hidden).detach(), _head(teacher_head))
    if loss.needs().same_tokens and teacher_vocab is not None:
        raise ValueError(f"{loss.name} compares tokens one by one: expected one vocabulary, got teacher_vocab")
    if teacher is not None and not loss.needs().same_tokens:
        teacher_vocab = teacher_vocab or teacher.head.weight.shape[0]
    size = _vocabulary(head, None if teacher_vocab else teacher, vocab)
    hidden = packing.pack(student_hidden)
    kind = student_hidden.device.type
    compute = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else student_hidden.dtype
    kept = torch.float64 if compute == torch.float64 else torch.float32
    weights = torch.full((packing.count,), 1.0 / max(packing.count, 1), device=hidden.device, dtype=kept)
    work = FusedInputs(
        loss, packing.labels, weights, packing.sequence, teacher, size, compute, Workspace(chunk_tokens),
        teacher_vocab=teacher_vocab,
    )  # fmt: skip
    return fused_sum(Projection(hidden, head), work)[0]


def _built(objective: Objective) -> DistillLoss:
    loss = build_objective(objective) if isinstance(objective, str) else objective
    if loss.needs().features:
        raise ValueError(f"{loss.name} compares layers inside the models; there are only logits here: use kd distill")
    return loss


def _head(head: HeadLike) -> Head:
    if isinstance(head, Tensor):
        return Head(head)
    return Head(head.weight, head.bias) if isinstance(head, nn.Linear) else head


def _vocabulary(head: Head, teacher: Projection | None, vocab: int | None) -> int:
    rows = [head.weight.shape[0]] + ([] if teacher is None else [teacher.head.weight.shape[0]])
    if vocab is None and len(set(rows)) > 1:
        raise ValueError(f"expected heads of one vocabulary, got {rows[0]} and {rows[1]} rows; give vocab=")
    return min(rows) if vocab is None else vocab


def _check_logits(loss: DistillLoss, student: Tensor, teacher: Tensor | None, labels: Tensor) -> None:
    if loss.needs().teacher and teacher is None:
        raise ValueError(f"{loss.name} compares with a teacher: expected teacher_logits, got None")
    if teacher is not None and not loss.needs().same_tokens and teacher.shape[:2] == student.shape[:2]:
        teacher = None
    if teacher is not None and teacher.shape != student.shape:
        raise ValueError(f"expected logits of one shape, got {tuple(student.shape)} and {tuple(teacher.shape)}")
    if student.shape[:2] != labels.shape:
        raise ValueError(f"expected labels of shape {tuple(student.shape[:2])}, got {tuple(labels.shape)}")
