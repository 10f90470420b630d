"""Curves of training: each objective's loss, and the weights of adaptive objectives."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from kdcli.comparison.aggregate import Group
from kdcli.plots import COLOURS, DASHES, panels, plot_style, save, smooth
from kdcli.report.sections import Picture, ReportData, Section, short, thin
from kdcli.report.svg import inline
from kdcli.text import one_line
from kdcli.training.metrics_log import read_metrics

Line = dict[str, int | float]


def curves(material: ReportData) -> Section | None:
    """Return one picture of the training loss per contender."""
    pictures = []
    for index, group in enumerate(material.groups):
        lines = {seed: material.metrics(run) for seed, (run, _) in sorted(group.runs.items())}
        if not any(lines.values()):
            continue
        with plot_style():
            figure, (ax,) = panels(1, width=3.6, height=2.3)
            for number, (seed, log) in enumerate(lines.items()):
                _follow(ax, log, lambda line: line["loss"], material.colour(group.label), number, f"seed {seed}")
            _finish(ax, short(group.label), "own loss per token", legend=len(lines) > 1)
            words = f"Training loss of {group.label} by optimizer step"
            pictures.append(Picture(inline(figure, f"curve{index}", words)))
    if not pictures:
        return None
    words = [
        "The objective's own value per token, by optimizer step: pale as logged, strong as a running mean. Every panel "
        "has a scale of its own, since values of different objectives do not compare; look for curves that still fall, "
        "that jump, or whose seeds part."
    ]
    return Section("training", "Training curves", words, pictures=pictures)


@dataclass(frozen=True)
class _Logged:
    """Something an adaptive objective logs, and how to say it.

    Args:
        suffix: end of its name in the log.
        title: of the picture.
        first: name of the logged share.
        second: name of its complement to 1.
        words: how to read it.
    """

    suffix: str
    title: str
    first: str
    second: str
    words: str


_AKL = _Logged(
    ".head_weight",
    "weights of AKL",
    "head: forward KL",
    "tail: reverse KL",
    "AKL weighs forward and reverse KL anew for each token, by the share of the gap between teacher and student that "
    "lies in the head of the teacher's distribution. A head weight above 1/2 says that most of what is still to be "
    "learnt lies among the teacher's likeliest tokens; as the head is fitted, the weight moves to the tail.",
)
_ATKD = _Logged(
    ".easy_share",
    "easy and hard tokens of ATKD",
    "easy tokens",
    "hard tokens",
    "ATKD teaches tokens on which the teacher is sure (easy) otherwise than those on which it is not (hard). The share "
    "of tokens stays near the chosen one by construction; the share of the loss says which of the two groups the "
    "student is working on.",
)


def adaptive(material: ReportData) -> Section | None:
    """Return what AKL's weights and ATKD's groups did over training; None if neither was used."""
    pictures: list[Picture] = []
    words: list[str] = []
    for logged in (_AKL, _ATKD):
        found = list(_pictures(material, logged, len(pictures)))
        pictures += found
        words += [logged.words] if found else []
    if not pictures:
        return None
    return Section("adaptive", "What the adaptive objectives did", words, pictures=pictures)


def _pictures(material: ReportData, logged: _Logged, number: int) -> Iterable[Picture]:
    for group in material.groups:
        logs = {seed: material.metrics(run) for seed, (run, _) in sorted(group.runs.items())}
        names = [name for log in logs.values() if log for name in log[0] if name.endswith(logged.suffix)]
        for name in dict.fromkeys(names):
            what = f"{logged.title} in {group.label}"
            yield _draw(material, group.label, logs, lambda line, name=name: line[name], logged, f"watch{number}", what)
            number += 1
            parts = _loss_parts(name, next(log for log in logs.values() if log)[0])
            if logged is _ATKD and parts is not None:
                share = _share_of_loss(*parts)
                what = f"share of the loss on easy and hard tokens in {group.label}"
                yield _draw(material, group.label, logs, share, logged, f"watch{number}", what, "share of the loss")
                number += 1


def _draw(
    material: ReportData,
    label: str,
    logs: dict[int, list[Line]],
    value: Callable[[Line], float],
    logged: _Logged,
    key: str,
    what: str,
    axis: str = "",
) -> Picture:
    colour = material.colour(label)
    with plot_style():
        figure, (ax,) = panels(1, width=3.6, height=2.4)
        for number, log in enumerate(logs.values()):
            names = (logged.first, logged.second) if number == 0 else ("", "")
            _follow(ax, log, value, colour, 0, names[0], pale=False)
            _follow(ax, log, lambda line: 1.0 - value(line), "#555555", 1, names[1], pale=False)
        _finish(ax, short(label), axis or ("weight" if logged is _AKL else "share of the tokens"), legend=True)
        ax.set_ylim(0.0, 1.0)
        return Picture(inline(figure, key, f"{what}, by optimizer step"))


def _loss_parts(name: str, line: Line) -> tuple[str, str] | None:
    """Return the names of the loss on easy and hard tokens, which stand alone or after the objective's label."""
    label = name.rpartition(".")[0]
    pairs = [(f"{label}.easy", f"{label}.hard"), ("easy", "hard")]
    return next((pair for pair in pairs if all(part in line for part in pair)), None)


def _share_of_loss(easy: str, hard: str) -> Callable[[Line], float]:
    def share(line: Line) -> float:
        whole = line[easy] + line[hard]
        return line[easy] / whole if whole else 0.5

    return share


def _follow(
    ax: Axes,
    log: Sequence[Line],
    value: Callable[[Line], float],
    colour: str,
    number: int,
    label: str,
    *,
    pale: bool = True,
) -> None:
    if not log:
        return
    steps, values = [float(line["step"]) for line in log], [value(line) for line in log]
    smoothed = smooth(values, max(1, len(values) // 20))
    if pale:
        ax.plot(*thin(steps, values), color=colour, alpha=0.2, linewidth=0.7)
    ax.plot(*thin(steps, smoothed), color=colour, linestyle=DASHES[number % len(DASHES)], label=label or None)


def _finish(ax: Axes, title: str, axis: str, *, legend: bool) -> None:
    ax.set_title(title, loc="left")
    ax.set_xlabel("optimizer step")
    ax.set_ylabel(axis)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if legend:
        ax.legend(fontsize=8)


# Training curves of a comparison.


_LONGEST_TITLE = 38


def draw_curves(folder: Path, groups: Sequence[Group]) -> None:
    """Draw each objective's own training loss, one panel each, as ``curves.png`` and ``curves.svg``.

    Values of different objectives do not compare, so every panel has a scale of its own.
    """
    with plot_style():
        figure, axes = panels(len(groups), columns=min(4, max(2, len(groups))), width=2.9, height=2.3)
        for index, (group, ax) in enumerate(zip(groups, axes, strict=True)):
            lowest = 0.0
            for line, (seed, (run, _)) in enumerate(sorted(group.runs.items())):
                steps, losses = read_losses(run.folder)
                smoothed = smooth(losses, max(1, len(losses) // 20))
                colour, dash = COLOURS[index % len(COLOURS)], DASHES[line % len(DASHES)]
                ax.plot(steps, losses, color=colour, alpha=0.18, linewidth=0.7)
                ax.plot(steps, smoothed, color=colour, linestyle=dash, label=f"seed {seed}")
                lowest = min(lowest, *smoothed)
            ax.set_title(one_line(group.label, _LONGEST_TITLE), loc="left")
            ax.set_xlabel("optimizer step")
            if index % 4 == 0:
                ax.set_ylabel("own loss per token")
            ax.set_ylim(bottom=lowest)
            ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            if len(group.runs) > 1:
                ax.legend()
        figure.suptitle("Training loss of each objective; scales differ, heights do not compare", x=0.01, ha="left")
        save(figure, folder, "curves")


def read_losses(run: Path) -> tuple[list[int], list[float]]:
    """Return steps and losses from a run's metrics."""
    lines = read_metrics(run)
    return [line["step"] for line in lines], [line["loss"] for line in lines]
