"""Quality against cost, with the contenders that no other beats on both."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

from kdcli.runs.records import ComparisonRow, ScoreInfo
from kdcli.runs.report.material import Material, short
from kdcli.runs.report.parts import Picture, Section
from kdcli.runs.report.svg import inline
from kdcli.runs.style import GREY, look, panels

MARKERS = "osD^vPX*"


@dataclass(frozen=True)
class Cost:
    """Something a contender costs.

    Args:
        name: as on the axis.
        of: what one line of the table costs; None where it is not known.
        machine: whether it depends on the machine and on what else ran there: then nobody is on a front.
        spread: its least and greatest value over the runs.
    """

    name: str
    of: Callable[[ComparisonRow], int | float | None]
    machine: bool = False
    spread: Callable[[ComparisonRow], tuple[float, float]] | None = None


COSTS = (
    Cost("parameters of the student (million)", lambda row: _scaled(row.parameters, 1e6)),
    Cost("training arithmetic (PFLOP)", lambda row: _scaled(row.flops, 1e15)),
    Cost("training time of one run (s)", lambda row: row.seconds, True, lambda row: row.seconds_range),
    Cost("peak memory of training (MiB)", lambda row: row.peak_bytes / 2**20, True),
)


def pareto(material: Material) -> Section | None:
    """Return quality against each cost that differs between contenders; None if none does."""
    rows = material.comparison.rows
    infos = _chosen(material.ranked)
    pictures = [
        _draw(material, info, cost, f"pareto{index}x{number}")
        for index, info in enumerate(infos)
        for number, cost in enumerate(COSTS)
        if _differs([cost.of(row) for row in rows])
    ]
    if not pictures:
        return None
    words = [
        "Each mark is a contender: what it cost (across) and how good it is (up). Full marks, joined by the grey line, "
        "are the front: no other contender is both cheaper and at least as good. Hollow marks are beaten by one. "
        "Times and memory are of this machine and of what else it did: there no front is drawn, and the bar of a time "
        "goes from the fastest to the slowest of the seeds; one run has no bar, and says little about the next. Dashed "
        "grey lines are the models that were not trained here. Intervals are in the ranking above; small gaps may be "
        "noise.",
    ]
    return Section("pareto", "Quality against cost", words, pictures=pictures)


def front(points: Sequence[tuple[float, float]], *, higher: bool) -> list[int]:
    """Return the indexes of the points no other beats, by rising cost.

    Args:
        points: cost and quality of each.
        higher: whether more quality is a larger number.

    >>> front([(1.0, 5.0), (2.0, 4.0), (3.0, 9.0)], higher=True)
    [0, 2]
    """
    sign = 1.0 if higher else -1.0
    kept: list[int] = []
    best = -float("inf")
    for index in sorted(range(len(points)), key=lambda place: (points[place][0], -sign * points[place][1])):
        if sign * points[index][1] > best:
            best = sign * points[index][1]
            kept.append(index)
    return kept


def _draw(material: Material, info: ScoreInfo, cost: Cost, key: str) -> Picture:
    labels, points, spreads = [], [], []
    for row in material.comparison.rows:
        spent = cost.of(row)
        if spent is not None and info.name in row.scores:
            labels.append(row.label)
            points.append((spent, row.scores[info.name].mean))
            spreads.append(cost.spread(row) if cost.spread is not None else (spent, spent))
    ahead = [] if cost.machine else front(points, higher=info.better == "higher")
    with look():
        figure, (ax,) = panels(1, width=3.7, height=2.5 + 0.17 * len(labels))
        ax.plot([points[index][0] for index in ahead], [points[index][1] for index in ahead], color=GREY, linewidth=1.0)
        for index, (label, point) in enumerate(zip(labels, points, strict=True)):
            colour = material.colour(label)
            face = colour if index in ahead else "white"
            ax.plot(spreads[index], [point[1]] * 2, color=colour, linewidth=1.1)
            marker = MARKERS[index % len(MARKERS)]
            ax.plot(*point, marker, color=colour, markerfacecolor=face, markersize=7, label=short(label), linestyle="")
        for row in material.comparison.references:
            if info.name in row.scores:
                height, colour = row.scores[info.name].mean, material.colour(row.label)
                ax.axhline(height, color=colour, linewidth=1.0, linestyle="--", label=short(row.label))
        ax.set_xlabel(cost.name)
        ax.set_ylabel(f"{info.name} ({info.better} is better)")
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.margins(0.12)
        figure.legend(loc="outside lower left", fontsize=7.5, ncols=1)
        names = "; on the front: " + ", ".join(labels[index] for index in ahead) if ahead else ""
        return Picture(inline(figure, key, f"{info.name} against {cost.name}{names}"))


def _chosen(infos: Sequence[ScoreInfo]) -> list[ScoreInfo]:
    """Return the first score of answers and the first of tokens."""
    firsts = {info.eats: info for info in reversed(infos)}
    return [info for info in infos if firsts[info.eats] is info]


def _differs(values: Sequence[float | None]) -> bool:
    known = [value for value in values if value is not None]
    return len(known) > 1 and max(known) - min(known) > 1e-3 * abs(max(known))


def _scaled(value: int | float | None, unit: float) -> float | None:
    return None if value is None else value / unit
