"""Per-token facts of held-out rows, chunk by chunk: evaluation never holds full logits either."""

from collections.abc import Collection, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from kdcli.data.collate import Batch, collate
from kdcli.data.examples import TokenDataset
from kdcli.data.order import micro_batches
from kdcli.engine.devices import Device
from kdcli.engine.distances import jensen_shannon, total_variation
from kdcli.engine.events import Event, Report
from kdcli.engine.expected import brier_by_teacher, nll_by_teacher, top1_by_teacher
from kdcli.engine.mixture import Mixture, applied
from kdcli.engine.pack import Packing, find_valid
from kdcli.engine.projection import Projection, wide
from kdcli.engine.teacher import LiveTeacher, Teacher
from kdcli.engine.workspace import Workspace
from kdcli.losses.logits import log_softmax
from kdcli.losses.ops import kl
from kdcli.models.load import LanguageModel


@torch.no_grad()
def token_facts(
    student: LanguageModel,
    teacher: Teacher | None,
    dataset: TokenDataset,
    *,
    vocab: int,
    micro_tokens: int,
    device: Device,
    report: Report,
    names: Collection[str] | None = None,
    temperature: float | None = None,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Measure every response token of a data set.

    Args:
        student: the model measured.
        teacher: what it is compared with, or None.
        dataset: held-out rows.
        vocab: real ids; both heads are restricted to them.
        micro_tokens: padded tokens per batch.
        device: where to compute.
        report: told how far it is.
        names: the facts to measure, default all that can be had.
        temperature: what to divide the student's logits by for ``scaled_`` facts besides; None for none.

    Returns:
        facts by name, each ``[n]`` in float64 and in the order of the rows: ``label_logp``, ``top1_prob``,
        ``top1_correct``, ``brier`` and, with a teacher, ``kl_from_teacher`` = KL(p‖q),
        ``kl_to_teacher`` = KL(q‖p), ``agree``, ``jsd``, ``total_variation`` and, in expectation over labels of the
        teacher, ``top1_by_teacher``, ``brier_by_teacher`` and ``nll_by_teacher``; with a
        temperature ``scaled_label_logp``, ``scaled_top1_prob``, ``scaled_brier`` and the ``temperature``; and the
        row of each token, ``[n]``.
    """
    workspace, pieces, rows, done = Workspace(), [], [], 0
    report(Event("stage", "measuring tokens", total=len(dataset.examples)))
    for indexes in micro_batches(list(range(len(dataset.examples))), dataset.lengths, micro_tokens):
        batch = collate(dataset.examples, indexes, student.pad_id)
        packing = find_valid(batch.labels)
        sides = sides_of(student, teacher, batch, packing, device)
        pieces.extend(_chunks(sides, packing, vocab, device, workspace, names, temperature))
        rows.append(batch.example[packing.sequence].numpy())
        done += len(indexes)
        report(Event("progress", "measuring tokens", done=done, total=len(dataset.examples)))
    example = np.concatenate(rows)
    order = np.argsort(example, kind="stable")
    return {name: np.concatenate([piece[name] for piece in pieces])[order] for name in pieces[0]}, example[order]


def sides_of(
    student: LanguageModel, teacher: Teacher | None, batch: Batch, packing: Packing, device: Device
) -> list[Projection | Mixture]:
    """Return hidden states and head of the student and, if there is one, the teacher."""
    moved, there = batch.to(device.device), packing.to(device.device)
    with torch.autocast(device.device.type, device.autocast, enabled=device.autocast is not None):
        sides = [side.side(moved, there) for side in (LiveTeacher(student), teacher) if side is not None]
    whole = [side for side in sides if isinstance(side, Projection | Mixture)]
    assert len(whole) == len(sides), "evaluation asks for the whole teacher"
    return whole


def _chunks(
    sides: list[Projection | Mixture],
    packing: Packing,
    vocab: int,
    device: Device,
    workspace: Workspace,
    names: Collection[str] | None,
    temperature: float | None,
) -> Iterator[Mapping[str, np.ndarray]]:
    heads = [
        applied(name, side, vocab, device.compute, workspace)
        for name, side in zip(("student", "teacher"), sides, strict=False)
    ]
    size = workspace.chunk(vocab, device.device)
    for start in range(0, packing.count, size):
        span = slice(start, min(start + size, packing.count))
        logits = [wide(head.logits(span)) for head in heads]
        labels = packing.labels[span].to(device.device)
        facts = facts_of(labels, *logits, names=names)
        if temperature is not None:
            facts |= _scaled(labels, logits[0], temperature)
        yield {name: fact.double().cpu().numpy() for name, fact in facts.items()}


def facts_of(
    labels: Tensor, student: Tensor, teacher: Tensor | None = None, *, names: Collection[str] | None = None
) -> dict[str, Tensor]:
    """Return the facts of a few tokens from their logits.

    Args:
        labels: target ids, ``[t]``.
        student: logits, ``[t, v]``.
        teacher: logits, ``[t, v]``.
        names: the facts to measure, default all that can be had.

    >>> facts = facts_of(torch.tensor([0]), torch.tensor([[2.0, 0.0]]))
    >>> round(facts["top1_prob"].item(), 4), round(facts["brier"].item(), 4)
    (0.8808, 0.0284)
    """
    log_q = log_softmax(student)
    q = log_q.exp()
    label_logp = log_q.gather(1, labels.unsqueeze(1)).squeeze(1)
    top_prob, top = q.max(dim=1)
    brier = q.square().sum(1) - 2.0 * label_logp.exp() + 1.0
    facts = {"label_logp": label_logp, "top1_prob": top_prob, "top1_correct": top == labels, "brier": brier}
    if teacher is not None:
        log_p = log_softmax(teacher)
        facts["agree"] = teacher.argmax(dim=1) == top
        facts |= {name: measure(log_p, log_q) for name, measure in _BETWEEN.items() if names is None or name in names}
    return {name: fact for name, fact in facts.items() if names is None or name in names}


def _scaled(labels: Tensor, student: Tensor, temperature: float) -> dict[str, Tensor]:
    facts = facts_of(labels, student / temperature, names=("label_logp", "top1_prob", "brier"))
    constant = torch.full_like(labels, temperature, dtype=torch.float64)
    return {f"scaled_{name}": fact for name, fact in facts.items()} | {"temperature": constant}


def _kl_to_teacher(log_p: Tensor, log_q: Tensor) -> Tensor:
    return kl(log_q, log_p)


_BETWEEN = {
    "kl_from_teacher": kl,
    "kl_to_teacher": _kl_to_teacher,
    "jsd": jensen_shannon,
    "total_variation": total_variation,
    "top1_by_teacher": top1_by_teacher,
    "brier_by_teacher": brier_by_teacher,
    "nll_by_teacher": nll_by_teacher,
}
