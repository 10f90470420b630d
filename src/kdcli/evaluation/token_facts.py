"""Per-token facts of held-out rows, chunk by chunk: evaluation never holds full logits either."""

from collections.abc import Collection, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from kdcli.data.batching import Batch, collate, micro_batches
from kdcli.data.tokenize import TokenDataset
from kdcli.events import Event, Report
from kdcli.losses.base import log_softmax
from kdcli.losses.divergences.ops import compare, kl, kl_to_mixture
from kdcli.metrics.temperature_scaling import fit_temperature
from kdcli.models.devices import Device
from kdcli.models.load import LanguageModel
from kdcli.models.packing import Packing, Predictions, Workspace, find_valid, wide
from kdcli.shapes import Logits, TokenValues
from kdcli.teachers.base import LiveTeacher, Teacher

# Two bounded distances between distributions, to full precision also where the two are nearly equal.


def total_variation(log_p: Logits, log_q: Logits) -> TokenValues:
    """Return the total variation distance of each token, ``1/2 sum_v |p_v - q_v|``, from 0 to 1.

    Where p and q are close, ``|p - q| = p |exp(-r) - 1|`` with ``r = log(p / q)`` keeps the digits
    that the plain difference of two rounded probabilities loses. ``1 - TV`` is the probability that
    a token drafted from q is accepted by p in speculative sampling.

    Args:
        log_p: log-probabilities or logits, ``[t, v]``, finite (see ``losses.logits.FILTERED``).
        log_q: of the other distribution, ``[t, v]``.

    Reference: Leviathan et al. 2023, arXiv:2211.17192, lemma 3.3.

    >>> p, q = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.6, 0.4]]).log()
    >>> round(total_variation(p, q).item(), 4)
    0.3
    """
    p, q, log_ratio = compare(log_p, log_q)
    close = p * torch.expm1(log_ratio.clamp(-1.0, 1.0).neg_()).abs_()
    apart = torch.where(log_ratio.abs() < 1.0, close, (p - q).abs_())
    return apart.sum(-1).mul_(0.5).clamp_(max=1.0)


def jensen_shannon(log_p: Logits, log_q: Logits) -> TokenValues:
    """Return the Jensen-Shannon divergence of each token, ``1/2 KL(p || m) + 1/2 KL(q || m)``, from 0 to log 2.

    Args:
        log_p: log-probabilities or logits, ``[t, v]``, finite (see ``losses.logits.FILTERED``).
        log_q: of the other distribution, ``[t, v]``; m is the mean of the two.

    Reference: Lin 1991, Divergence measures based on the Shannon entropy, equation 3.1.

    >>> p, q = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.6, 0.4]]).log()
    >>> round(jensen_shannon(p, q).item(), 4)
    0.0633
    """
    return 0.5 * (kl_to_mixture(log_p, log_q, 0.5) + kl_to_mixture(log_q, log_p, 0.5))


# What a teacher would say of the student's next token: label facts in expectation over the teacher's labels.


def top1_by_teacher(log_p: Logits, log_q: Logits) -> TokenValues:
    """Return the teacher's probability of the student's likeliest token: how often it would be right.

    Args:
        log_p: the teacher's log-probabilities, ``[t, v]``.
        log_q: the student's, ``[t, v]``.

    >>> p, q = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.4, 0.6]]).log()
    >>> round(top1_by_teacher(p, q).item(), 4)
    0.1
    """
    return torch.gather(log_p, 1, log_q.argmax(dim=1, keepdim=True)).squeeze(1).exp()


def brier_by_teacher(log_p: Logits, log_q: Logits) -> TokenValues:
    """Return the student's expected Brier score, ``E_{y ~ p}[sum_v (q_v - 1[v = y])^2] = sum_v q_v (q_v - 2 p_v) + 1``.

    Args:
        log_p: the teacher's log-probabilities, ``[t, v]``.
        log_q: the student's, ``[t, v]``.

    >>> p, q = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.4, 0.6]]).log()
    >>> round(brier_by_teacher(p, q).item(), 4)
    0.68
    """
    q = log_q.exp()
    return q.sub(log_p.exp(), alpha=2.0).mul_(q).sum(1).add_(1.0)


def nll_by_teacher(log_p: Logits, log_q: Logits) -> TokenValues:
    """Return the student's expected negative log-likelihood, ``E_{y ~ p}[-log q_y]``, in nats.

    Args:
        log_p: the teacher's log-probabilities, ``[t, v]``.
        log_q: the student's, ``[t, v]``, finite.

    >>> p, q = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.4, 0.6]]).log()
    >>> round(nll_by_teacher(p, q).item(), 4)
    0.8757
    """
    return log_p.exp().mul_(log_q).sum(1).neg_()


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
        report: called with progress events.
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
) -> list[Predictions]:
    """Return hidden states and head of the student and, if there is one, the teacher."""
    moved, there = batch.to(device.device), packing.to(device.device)
    with torch.autocast(device.device.type, device.autocast, enabled=device.autocast is not None):
        sides = [side.side(moved, there) for side in (LiveTeacher(student), teacher) if side is not None]
    whole = [side.whole for side in sides if side.whole is not None]
    assert len(whole) == len(sides), "evaluation asks for the whole teacher"
    return whole


def _chunks(
    sides: list[Predictions],
    packing: Packing,
    vocab: int,
    device: Device,
    workspace: Workspace,
    names: Collection[str] | None,
    temperature: float | None,
) -> Iterator[Mapping[str, np.ndarray]]:
    heads = [
        side.apply(name, vocab, device.compute, workspace)
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


# The temperature at which a model's next-token probabilities fit development rows best, fitted by passes over them.


def fit_token_temperature(
    model: LanguageModel, dataset: TokenDataset, *, micro_tokens: int, device: Device, report: Report
) -> float:
    """Return the temperature that minimises the negative log-likelihood of the rows' response tokens.

    Each Newton step is one pass over the rows, usually four to six in all. Of a pass two numbers are
    kept: memory does not grow with the tokens.

    Args:
        model: the model measured.
        dataset: development rows.
        micro_tokens: padded tokens per batch.
        device: where to compute.
        report: called with progress events.

    Raises:
        NumericsError: the likelihood is not a number.
    """
    workspace, passes = Workspace(), 0

    def slopes(beta: float) -> tuple[float, float]:
        nonlocal passes
        report(Event("stage", f"fitting the temperature, pass {passes + 1}", total=len(dataset)))
        passes += 1
        return _pass(model, dataset, beta, micro_tokens, device, workspace, report)

    return fit_temperature(slopes, "temperature scaling")


@torch.no_grad()
def _pass(
    model: LanguageModel, dataset: TokenDataset, beta: float, micro_tokens: int, device: Device,
    workspace: Workspace, report: Report,
) -> tuple[float, float]:  # fmt: skip
    first = second = 0.0
    done = 0
    for indexes in micro_batches(list(range(len(dataset))), dataset.lengths, micro_tokens):
        batch = collate(dataset.examples, indexes, model.pad_id)
        packing = find_valid(batch.labels)
        (side,) = sides_of(model, None, batch, packing, device)
        head = side.apply("student", model.vocab, device.compute, workspace)
        size = workspace.chunk(model.vocab, device.device)
        for start in range(0, packing.count, size):
            span = slice(start, min(start + size, packing.count))
            slope, curvature = slopes_of_tokens(packing.labels[span].to(device.device), wide(head.logits(span)), beta)
            first, second = first + slope, second + curvature
        done += len(indexes)
        report(Event("progress", "fitting the temperature", done=done, total=len(dataset)))
    return first, second


def slopes_of_tokens(labels: Tensor, logits: Tensor, beta: float) -> tuple[float, float]:
    """Return the derivatives by ``beta = 1/T`` of some tokens' summed negative log-likelihood.

    Args:
        labels: target ids, ``[t]``.
        logits: ``[t, v]``; overwritten.
        beta: inverse temperature.

    Returns:
        ``sum_t (E_q[z] - z_label)`` and ``sum_t Var_q[z]``, with q the softmax of beta z.

    >>> slopes_of_tokens(torch.tensor([1]), torch.tensor([[0.0, 2.0]]), 0.0)
    (-1.0, 1.0)
    """
    logits -= logits.max(dim=1, keepdim=True).values
    q = torch.softmax(beta * logits, dim=1)
    mean = (q * logits).sum(dim=1)
    chosen = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    variance = q.mul_((logits - mean.unsqueeze(1)).square_()).sum(dim=1)
    return float((mean - chosen).double().sum()), float(variance.double().sum())
