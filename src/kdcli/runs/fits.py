"""What each divergence makes of a target with two bumps, by the package's own losses.

First with a student that cannot reach the target, a discretised Gaussian with two numbers to learn:
covering both bumps or seeking one. Then with one that can, a free vector of logits: which part of
the target is fitted first, its head (the likeliest entries that hold half the mass) or its tail.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.axes import Axes
from torch import Tensor

from kdcli.losses.base import DistillLoss, Tokens
from kdcli.losses.build import build_objective
from kdcli.runs.style import COLOURS, GREY, log_heights, look, panels, save

ENTRIES = 60
LABELS = 48
STEPS = 150
FREE_STEPS = 150
FREE_RATE = 2.0
STARTS = tuple((mean, width) for mean in (16.0, 30.0, 44.0) for width in (4.0, 12.0))
"""Mean and width to start from; the best end counts, since a mode-seeking objective has one per mode."""


@dataclass(frozen=True)
class Fit:
    """One objective's fit.

    Args:
        name: the objective.
        q: fitted probabilities, ``[60]``.
        kept: share of the target's mass that lies where q has at least a tenth of p.
        spilt: mass q puts where p has less than a tenth of it.
        head: distance to the target within its head, by step of the free fit.
        tail: the same outside the head.
    """

    name: str
    q: Tensor
    kept: float
    spilt: float
    head: tuple[float, ...]
    tail: tuple[float, ...]


def target() -> Tensor:
    """Return the target: two bumps of mass 0.6 and 0.4 over 60 entries.

    >>> round(target().sum().item(), 6)
    1.0
    """
    place = torch.arange(ENTRIES, dtype=torch.float64)
    bumps = 0.6 * _bump(place, 17.0, 3.5) + 0.4 * _bump(place, 43.0, 3.5)
    return bumps / bumps.sum()


def fit(spec: str) -> Fit:
    """Fit one Gaussian to the target under an objective: the best of several starts.

    Targets of the tokens are spread over the quantiles of p, as a large sample of labels would be.
    """
    loss, p = build_objective(spec), target()
    q = gaussian_fit(loss, p)
    head, tail = free_fit(loss, p)
    return Fit(spec, q, *coverage(q, p), head, tail)


def gaussian_fit(loss: DistillLoss, p: Tensor) -> Tensor:
    """Return the Gaussian over the entries, ``[60]``, that an objective likes best: mean and width are learnt."""
    ends = [_descend(loss, p, start) for start in STARTS]
    _, numbers = min(ends, key=lambda end: end[0])
    return _log_q(numbers).exp()


def coverage(q: Tensor, p: Tensor) -> tuple[float, float]:
    """Return the share of p where q has at least a tenth of it, and the share of q where p has less than a tenth."""
    return p[q >= 0.1 * p].sum().item(), q[p < 0.1 * q].sum().item()


def free_fit(
    loss: DistillLoss, p: Tensor, *, steps: int = FREE_STEPS, rate: float = FREE_RATE
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Fit free logits to p from uniform; return ``sum |p - q|`` over head and tail at each step.

    The head is the likeliest entries up to half the mass, the one that crosses it included.
    """
    labels, teacher = _labels(p), p.log().expand(LABELS, -1)
    logits = torch.zeros(len(p), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([logits], lr=rate)
    order = p.argsort(descending=True, stable=True)
    in_head = torch.zeros(len(p), dtype=torch.bool)
    in_head[order[: int((p[order].cumsum(0) < 0.5).sum()) + 1]] = True
    gaps = []
    for _ in range(steps):
        gap = (p - logits.detach().softmax(0)).abs()
        gaps.append((gap[in_head].sum().item(), gap[~in_head].sum().item()))
        optimizer.zero_grad()
        value(loss, logits.expand(LABELS, -1), teacher, labels).backward()
        optimizer.step()
    head, tail = zip(*gaps, strict=True)
    return head, tail


def _labels(p: Tensor) -> Tensor:
    """Target ids spread over the quantiles of p."""
    return torch.searchsorted(p.cumsum(0), (torch.arange(LABELS) + 0.5).double() / LABELS)


def _descend(loss: DistillLoss, p: Tensor, start: tuple[float, float]) -> tuple[float, Tensor]:
    labels = _labels(p)
    numbers = torch.tensor(start, dtype=torch.float64).log().requires_grad_()
    optimizer = torch.optim.Adam([numbers], lr=0.05)
    teacher = p.log().expand(LABELS, -1)
    last = torch.tensor(torch.inf)
    for _ in range(STEPS):
        optimizer.zero_grad()
        last = value(loss, _log_q(numbers).expand(LABELS, -1), teacher, labels)
        last.backward()
        optimizer.step()
    return last.item(), numbers.detach()


def value(loss: DistillLoss, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Return a loss's mean over tokens, surveyed and planned as in training.

    Args:
        loss: the objective.
        student: logits ``[t, v]``.
        teacher: logits ``[t, v]``.
        labels: target ids ``[t]``.
    """
    tok = Tokens(labels, student, teacher, {"seq": torch.zeros_like(labels)})
    with torch.no_grad():
        facts = {**tok.facts, **(loss.survey(tok) if loss.needs().survey != "none" else {})}
        facts |= loss.plan(facts)
    return loss.token_loss(Tokens(labels, student, teacher, facts)).mean()


def draw_fits(folder: Path, fits: Sequence[Fit]) -> None:
    """Draw both fits of each objective in a column of its own, as ``fits.png`` and ``fits.svg``."""
    with look():
        figure, axes = panels(2 * len(fits), columns=len(fits), width=2.7, height=2.5)
        for index, one in enumerate(fits):
            colour = COLOURS[index % len(COLOURS)]
            _draw_limited(axes[index], one, colour)
            _draw_free(axes[len(fits) + index], one, colour)
        axes[0].set_ylabel("probability")
        axes[len(fits)].set_ylabel("sum of |p − q|")
        for ax in axes[1 : len(fits)] + axes[len(fits) + 1 :]:
            ax.set_yticklabels([])
        figure.suptitle("Above: the best Gaussian for a target with two bumps. Below: free logits on their way to it")
        save(figure, folder, "fits")


def _draw_limited(ax: Axes, one: Fit, colour: str) -> None:
    ax.fill_between(range(ENTRIES), target().tolist(), color=GREY, alpha=0.35, linewidth=0, label="target p")
    ax.plot(one.q.tolist(), color=colour, label="fit q")
    ax.set_title(f"{one.name}: {one.kept:.0%} of p covered,\n{one.spilt:.0%} of q outside p", loc="left")
    ax.set_ylim(0, 0.125)
    ax.set_xlim(0, ENTRIES - 1)
    ax.set_xlabel("entry of the vocabulary")
    ax.legend(loc="upper right")


def _draw_free(ax: Axes, one: Fit, colour: str) -> None:
    ax.plot(one.head, color=colour, label="head: likeliest half")
    ax.plot(one.tail, color=colour, linestyle="--", label="tail: the rest")
    log_heights(ax)
    ax.set_ylim(0.01, 1.0)
    ax.set_xlim(0, FREE_STEPS - 1)
    ax.set_xlabel("step of gradient descent")
    ax.legend(loc="upper right")


def _log_q(numbers: Tensor) -> Tensor:
    """Log-probabilities of the Gaussian whose mean and width are the exponentials of two numbers."""
    mean, width = numbers.exp()
    place = torch.arange(ENTRIES, dtype=numbers.dtype)
    return torch.log_softmax(-0.5 * ((place - mean) / width) ** 2, dim=0)


def _bump(place: Tensor, mean: float, width: float) -> Tensor:
    return torch.exp(-0.5 * ((place - mean) / width) ** 2) / width
