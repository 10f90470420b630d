"""Two toy experiments with a known answer, by the package's own losses.

First, that of the AKL paper: free logits descend to a long-tailed teacher, and the gap |p - q| is followed over
its head (the likeliest entries that hold half the mass) and its tail. Then the classic picture: a single Gaussian
is fitted to a target with two bumps, and covers both or seeks one.
"""

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from matplotlib.axes import Axes
from torch import Tensor

from kdcli.errors import UsageError
from kdcli.events import Event, Report
from kdcli.losses.base import DistillLoss, Tokens
from kdcli.losses.build import build_objective
from kdcli.plots import COLOURS, DASHES, GREY, log_heights, panels, plot_style, save
from kdcli.storage import atomic
from kdcli.text import csv_cell, one_line

# What each divergence makes of a target with two bumps, by the package's own losses.


FIT_ENTRIES = 60
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
    place = torch.arange(FIT_ENTRIES, dtype=torch.float64)
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
    with plot_style():
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
    ax.fill_between(range(FIT_ENTRIES), target().tolist(), color=GREY, alpha=0.35, linewidth=0, label="target p")
    ax.plot(one.q.tolist(), color=colour, label="fit q")
    ax.set_title(f"{one.name}: {one.kept:.0%} of p covered,\n{one.spilt:.0%} of q outside p", loc="left")
    ax.set_ylim(0, 0.125)
    ax.set_xlim(0, FIT_ENTRIES - 1)
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
    place = torch.arange(FIT_ENTRIES, dtype=numbers.dtype)
    return torch.log_softmax(-0.5 * ((place - mean) / width) ** 2, dim=0)


def _bump(place: Tensor, mean: float, width: float) -> Tensor:
    return torch.exp(-0.5 * ((place - mean) / width) ** 2) / width


ENTRIES, EPOCHS, RATE = 100, 300, 2.0
OBJECTIVES = ("fkl", "rkl", "akl", "jsd")


@dataclass(frozen=True)
class Toy:
    """One objective in both experiments.

    Args:
        objective: its spec.
        head: gap to the long-tailed teacher within its head, before each epoch.
        tail: the same outside the head.
        head_half: first epoch at which the head's gap is below half its start; None if never.
        tail_half: the same for the tail.
        q: the best Gaussian for the target with two bumps, ``[60]``.
        kept: share of the target's mass where q has at least a tenth of it.
        spilt: share of q where the target has less than a tenth of it.
    """

    objective: str
    head: tuple[float, ...]
    tail: tuple[float, ...]
    head_half: int | None
    tail_half: int | None
    q: tuple[float, ...]
    kept: float
    spilt: float


@dataclass(frozen=True)
class ToyReport:
    """Both experiments.

    Args:
        objectives: one entry each, in the order asked for.
        findings: what the numbers show, in sentences.
        folder: where figures and data are.
    """

    objectives: tuple[Toy, ...]
    findings: tuple[str, ...]
    folder: Path


def teacher() -> Tensor:
    """Return the long-tailed teacher, ``[100]``: the r-th likeliest entry has a probability in proportion to 1/r.

    >>> round(teacher()[:8].sum().item(), 3)
    0.524
    """
    p = 1.0 / torch.arange(1, ENTRIES + 1, dtype=torch.float64)
    return p / p.sum()


def toy(objectives: Sequence[str], folder: Path, report: Report) -> ToyReport:
    """Run both experiments, write figures and data.

    Args:
        objectives: specs of objectives.
        folder: to write into.
        report: called with events.

    Raises:
        UsageError: an objective that cannot be read.
        MachineError: the folder may not be written.
    """
    losses = {spec: build_objective(spec) for spec in objectives}
    for spec, loss in losses.items():
        if loss.needs().features:
            what = f"{spec} compares layers inside models; a toy has only logits"
            raise UsageError("FEAT-02", what, where="kd toy", fix="leave hidden and attention out")
    found = []
    for number, (spec, loss) in enumerate(losses.items()):
        report(Event("stage", f"fitting with {spec}", done=number, total=len(losses)))
        head, tail = free_fit(loss, teacher(), steps=EPOCHS, rate=RATE)
        p = target()
        q = gaussian_fit(loss, p)
        found.append(Toy(spec, head, tail, _half(head), _half(tail), tuple(q.tolist()), *coverage(q, p)))
    made = ToyReport(tuple(found), tuple(_findings(found)), folder)
    atomic.make_folder(folder)
    _write(made)
    draw_gaps(folder, found)
    draw_modes(folder, found)
    return made


def _half(gaps: Sequence[float]) -> int | None:
    return next((epoch for epoch, gap in enumerate(gaps) if gap < gaps[0] / 2), None)


def _findings(found: Sequence[Toy]) -> list[str]:
    """Say what the numbers show."""
    said = []
    sides: tuple[tuple[str, Callable[[Toy], int | None]], ...] = (
        ("head", lambda one: one.head_half),
        ("tail", lambda one: one.tail_half),
    )
    for side, epoch in sides:
        halved = {one.objective: at for one in found if (at := epoch(one)) is not None}
        never = [one.objective for one in found if epoch(one) is None]
        order = ", ".join(f"{name} {at}" for name, at in sorted(halved.items(), key=lambda pair: pair[1]))
        if halved:
            said.append(f"epochs until the {side} gap is halved: {order}")
        if never:
            said.append(f"the {side} gap is not halved within {EPOCHS} epochs by {', '.join(never)}")
    order = sorted(found, key=lambda one: -one.kept)
    widths = ", ".join(f"{one.objective} {one.kept:.0%} ({one.spilt:.0%} of its own mass outside)" for one in order)
    said.append(f"share of the two-bump target that the fitted Gaussian covers: {widths}")
    return said


def _write(made: ToyReport) -> None:
    document = asdict(made) | {"teacher": teacher().tolist(), "target": target().tolist()}
    del document["folder"]
    atomic.write_file(made.folder / "toy.json", json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    gaps = [
        [csv_cell(one.objective), epoch, head, tail]
        for one in made.objectives
        for epoch, (head, tail) in enumerate(zip(one.head, one.tail, strict=True))
    ]
    atomic.write_file(made.folder / "gaps.csv", _csv(["objective", "epoch", "head_gap", "tail_gap"], gaps))
    modes: list[list[object]] = [["target", place, p] for place, p in enumerate(target().tolist())]
    modes += [[csv_cell(one.objective), place, q] for one in made.objectives for place, q in enumerate(one.q)]
    atomic.write_file(made.folder / "modes.csv", _csv(["distribution", "entry", "probability"], modes))


def _csv(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([heads, *rows])
    return buffer.getvalue()


def draw_gaps(folder: Path, found: Sequence[Toy]) -> None:
    """Draw head and tail gap by epoch, all objectives in one panel each, as ``gaps.png`` and ``gaps.svg``."""
    with plot_style():
        figure, axes = panels(2, width=3.8, height=3.0, columns=2)
        for ax, title in zip(axes, ("head: likeliest half of the mass", "tail: the rest"), strict=True):
            for index, one in enumerate(found):
                gaps = one.head if ax is axes[0] else one.tail
                colour, dash = COLOURS[index % len(COLOURS)], DASHES[index % len(DASHES)]
                ax.plot(gaps, color=colour, linestyle=dash, label=one_line(one.objective, 30))
            log_heights(ax)
            ax.set_xlabel("epoch of gradient descent")
            ax.set_title(title, loc="left")
        axes[0].set_ylabel("sum of |p − q|")
        axes[0].legend(loc="lower left", fontsize=8)
        figure.suptitle("Free logits on their way to a long-tailed teacher", x=0.01, ha="left")
        save(figure, folder, "gaps")


def draw_modes(folder: Path, found: Sequence[Toy]) -> None:
    """Draw the best Gaussian of each objective for the target with two bumps, as ``modes.png`` and ``modes.svg``."""
    with plot_style():
        figure, axes = panels(len(found), width=2.7, height=2.4, columns=4)
        p = target().tolist()
        top = 1.08 * max([*p, *(max(one.q) for one in found)])
        for index, (ax, one) in enumerate(zip(axes, found, strict=True)):
            ax.fill_between(range(len(p)), p, color=GREY, alpha=0.35, linewidth=0, label="target p")
            ax.plot(one.q, color=COLOURS[index % len(COLOURS)], label="fit q")
            ax.set_title(f"{one_line(one.objective, 30)}\n{one.kept:.0%} of p covered", loc="left")
            ax.set(ylim=(0, top), xlim=(0, len(p) - 1), xlabel="entry")
            if index == 0:
                ax.legend(loc="upper right", fontsize=8)
        axes[0].set_ylabel("probability")
        figure.suptitle("One Gaussian fitted to two bumps: covering both, or seeking one", x=0.01, ha="left")
        save(figure, folder, "modes")
