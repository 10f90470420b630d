"""The ranking with its intervals, and the paired differences as a forest plot."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from kdcli.comparison.against_start import percent
from kdcli.comparison.records import ComparisonRow, ReferenceRow
from kdcli.distill.records import BEFORE
from kdcli.evaluation.records import ScoreInfo
from kdcli.plots import GREY, lines_panel, panels, plot_style
from kdcli.report.sections import Picture, ReportData, Section, Table, legend_of, short
from kdcli.report.svg import inline
from kdcli.report.table_view import BEFORE_TITLE, CLOSED_TITLE
from kdcli.statistics import Estimate
from kdcli.statistics.rounding import number

Row: TypeAlias = ComparisonRow | ReferenceRow
SIGNIFICANT = 0.05
ENDS = {"higher": "higher is better →", "lower": "← lower is better", "neither": "neither end is better"}


def ranking(material: ReportData) -> Section:
    """Return the table of all scores and a picture of each."""
    rows, infos = material.comparison.rows, material.scores
    units = dict.fromkeys(one.unit for row in rows for one in row.scores.values() if one.unit != "none")
    over = f" over {' or '.join(units)}" if units else ""
    words = [
        f"Each line is one objective, the best on top; the dot is its mean, the bar its 95 % interval{over}, small "
        "ticks are single seeds. Intervals of two objectives that overlap do not say that the two are equal: the "
        "paired differences below are the sharper question. In the table, “tied” does not differ significantly from "
        "the best."
    ]
    heads = ("objective", *(f"{info.heading}\u00a0{_arrow(info)}".strip() for info in infos))
    first = material.ranked[0] if material.ranked else infos[0]
    others = material.comparison.references
    if others:
        words += ["Grey lines are models that were not trained here, measured on the same rows."]
    lines = tuple((row.label, *(_score(row, info) for info in infos)) for row in (*others, *ordered(rows, first)))
    table = Table(f"Scores with their 95 % intervals, ± or [ ], in the order of {first.title}", heads, lines)
    pictures = [_draw(material, info, index) for index, info in enumerate(infos)]
    return Section("ranking", "Ranking", words, pictures=pictures, tables=[table])


def differences(material: ReportData) -> Section | None:
    """Return the differences to the baseline, None where there is nothing to differ from."""
    baseline, outside = material.comparison.baseline, material.comparison.references
    rows: list[Row] = [row for row in outside if any(row.differences.values())]
    rows += [row for row in material.comparison.rows if row.label != baseline]
    infos = [info for info in material.scores if any(row.differences.get(info.name) for row in rows)]
    if not infos:
        return None
    words = [
        f"The dot is the mean difference to {baseline} on the same seeds or examples, the bar its 95 % interval. A bar "
        "that stays clear of the line at zero is a difference that these runs can show; p is adjusted by Holm's rule "
        "for the number of objectives, and a full dot marks p < 0.05.",
    ]
    heads = ("objective", *(f"{info.heading}\u00a0{_arrow(info)}".strip() for info in infos))
    lines = tuple((row.label, *(_change(row.differences.get(info.name)) for info in infos)) for row in rows)
    pictures = [_forest(material, rows, info, index) for index, info in enumerate(infos)]
    table = Table(f"Difference to {baseline}, paired", heads, lines)
    return Section("differences", "Paired differences", words, pictures=pictures, tables=[table])


def since_start(material: ReportData) -> Section | None:
    """Return the differences to the student before training; None where it was not measured."""
    start = [row for row in material.comparison.references if row.role == BEFORE]
    rows = [row for row in (*material.comparison.references, *material.comparison.rows) if any(row.before.values())]
    infos = [info for info in material.scores if any(row.before.get(info.name) for row in rows)]
    if not start or not infos:
        return None
    words = [
        "What training did: the dot is the mean difference to the student before training on the same examples, and "
        "the same seeds where it was made at random. p is adjusted by Holm's rule for the number of objectives, apart "
        "from the tests against the baseline; a full dot marks p < 0.05.",
    ]
    heads = ("objective", *(f"{info.heading}\u00a0{_arrow(info)}".strip() for info in infos))
    changes = tuple((row.label, *(_change(row.before.get(info.name)) for info in infos)) for row in rows)
    tables = [Table(BEFORE_TITLE, heads, changes)]
    closed = [row for row in rows if any(row.closed.values())]
    if closed:
        shares = tuple((row.label, *(_share(row.closed.get(info.name)) for info in infos)) for row in closed)
        tables.append(Table(CLOSED_TITLE, heads, shares))
        words += [
            "A share of 100 % reaches the teacher, a negative one moves away from it; intervals are Fieller's, and a "
            "share is given only where the teacher is clearly better than the student before training."
        ]
    pictures = [_forest(material, rows, info, index, "before") for index, info in enumerate(infos)]
    return Section("start", "Against no training", words, pictures=pictures, tables=tables)


def ordered(rows: Sequence[Row], info: ScoreInfo) -> list[Row]:
    """Return the lines from best to worst; those without the score come last."""
    sign = -1.0 if info.better == "higher" else 1.0
    known = [row for row in rows if info.name in row.scores]
    return sorted(known, key=lambda row: sign * row.scores[info.name].mean) + [row for row in rows if row not in known]


def _draw(material: ReportData, info: ScoreInfo, index: int) -> Picture:
    every = [*material.comparison.rows, *material.comparison.references]
    rows = [row for row in ordered(every, info) if info.name in row.scores]
    first = next((row for row in rows if not row.is_reference), rows[0])
    seeds = {group.label: group.values(info.name) for group in material.groups}
    with plot_style():
        figure, ax = lines_panel(len(rows))
        for place, row in enumerate(rows):
            colour = material.colour(row.label)
            values = seeds.get(row.label, {})
            if len(values) > 1:
                ax.plot([*values.values()], [place] * len(values), "|", color=colour, alpha=0.5, markersize=7)
            _interval(ax, row.scores[info.name], place, colour, full=not row.is_reference)
        _label_lines(ax, [row.label for row in rows])
        ax.set_title(f"{info.title}   ({ENDS[info.better]})", loc="left")
        best = f"{first.label} stands first" if info.better != "neither" else "no order"
        return Picture(inline(figure, f"rank{index}", f"{info.title} of each objective with intervals: {best}"))


def _forest(
    material: ReportData, rows: Sequence[Row], info: ScoreInfo, index: int, against: str = "differences"
) -> Picture:
    shown = [(row, change) for row in rows if (change := getattr(row, against).get(info.name)) is not None]
    with plot_style():
        figure, ax = lines_panel(len(shown))
        ax.axvline(0.0, color="#333333", linewidth=0.9)
        for place, (row, change) in enumerate(shown):
            sure = change.p_value is not None and change.p_value < SIGNIFICANT
            _interval(ax, change, place, material.colour(row.label), full=sure)
        _label_lines(ax, [row.label for row, _ in shown])
        ax.set_title(f"Δ {info.title}   ({ENDS[info.better]})", loc="left")
        other = material.comparison.baseline if against == "differences" else "the student before training"
        words = f"Difference in {info.title} to {other}, one line per objective"
        return Picture(inline(figure, f"forest{index}{against}", words))


def _interval(ax: Axes, estimate: Estimate, place: int, colour: str, *, full: bool) -> None:
    if estimate.low is not None and estimate.high is not None:
        ax.plot([estimate.low, estimate.high], [place, place], color=colour, linewidth=1.8, solid_capstyle="butt")
    ax.plot(
        [estimate.mean], [place], "o", color=colour, markersize=6, markerfacecolor=colour if full else "white", zorder=3
    )


def _label_lines(ax: Axes, labels: Sequence[str]) -> None:
    """Write each line's name above it, where a long one has room."""
    for place, label in enumerate(labels):
        ax.annotate(
            short(label), (0.0, place - 0.2), xycoords=("axes fraction", "data"), fontsize=8, va="bottom", ha="left",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
        )  # fmt: skip
    ax.set_ylim(len(labels) - 0.55, -0.75)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    ax.grid(visible=False, axis="y")
    ax.margins(x=0.08)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    for line in ax.get_xgridlines():
        line.set_color(GREY)
        line.set_alpha(0.25)


def _share(share: Estimate | None) -> str:
    return "–" if share is None else percent(share)


def _score(row: Row, info: ScoreInfo) -> str:
    mark = " (best)" if info.name in row.best else " (tied)" if info.name in row.tied else ""
    return number(row.scores.get(info.name)) + mark


def _change(estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    value = estimate.p_value
    p = "" if value is None else " (p\u00a0<\u00a00.001)" if value < 0.001 else f" (p\u00a0{value:.3f})"
    return number(estimate, signed=True) + p


def _arrow(info: ScoreInfo) -> str:
    return {"higher": "↑", "lower": "↓", "neither": ""}[info.better]


# Quality against cost, with the contenders that no other beats on both.


MARKERS = "osD^vPX*"


@dataclass(frozen=True)
class Cost:
    """Something a contender costs.

    Args:
        name: as on the axis.
        of: what one line of the table costs; None where it is not known.
        machine: whether it depends on the machine and on what else ran there: then there is no front.
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


def pareto(material: ReportData) -> Section | None:
    """Return quality against each cost that differs between contenders; None if none does."""
    rows = material.comparison.rows
    infos = _chosen(material.ranked)
    pictures = [
        _pareto_draw(material, info, cost, f"pareto{index}x{number}")
        for index, info in enumerate(infos)
        for number, cost in enumerate(COSTS)
        if _differs([cost.of(row) for row in rows])
    ]
    if not pictures:
        return None
    words = [
        "Each mark is a contender: what it cost (across) and how good it is (up). Full marks, joined by the grey line, "
        "are the front: no other objective is both cheaper and at least as good. Hollow marks are beaten by one. "
        "Times and memory are of this machine and of what else it did: there no front is drawn, and the bar of a time "
        "goes from the fastest to the slowest of the seeds; one run has no bar, and says little about the next. Dashed "
        "grey lines are the models that were not trained here. Intervals are in the ranking above; small gaps may be "
        "noise.",
    ]
    marks = [
        (row.label, {"marker": MARKERS[index % len(MARKERS)], "linestyle": "", "markersize": 7})
        for index, row in enumerate(rows)
    ]
    others = [(row.label, {"linestyle": "--"}) for row in material.comparison.references]
    legend = legend_of(material, [*marks, *others], "legend-pareto")
    return Section("pareto", "Quality against cost", words, pictures=pictures, legend=legend)


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


def _pareto_draw(material: ReportData, info: ScoreInfo, cost: Cost, key: str) -> Picture:
    labels, points, spreads = [], [], []
    for row in material.comparison.rows:
        spent = cost.of(row)
        if spent is not None and info.name in row.scores:
            labels.append(row.label)
            points.append((spent, row.scores[info.name].mean))
            spreads.append(cost.spread(row) if cost.spread is not None else (spent, spent))
    ahead = [] if cost.machine else front(points, higher=info.better == "higher")
    with plot_style():
        figure, (ax,) = panels(1, width=3.7, height=2.5)
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
        ax.set_ylabel(f"{info.heading}, {info.better} is better")
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.margins(0.12)
        names = "; on the front: " + ", ".join(labels[index] for index in ahead) if ahead else ""
        return Picture(inline(figure, key, f"{info.title} against {cost.name}{names}"))


def _chosen(infos: Sequence[ScoreInfo]) -> list[ScoreInfo]:
    """Return the first score of answers and the first of tokens."""
    firsts = {info.input_kind: info for info in reversed(infos)}
    return [info for info in infos if firsts[info.input_kind] is info]


def _differs(values: Sequence[float | None]) -> bool:
    known = [value for value in values if value is not None]
    return len(known) > 1 and max(known) - min(known) > 1e-3 * abs(max(known))


def _scaled(value: int | float | None, unit: float) -> float | None:
    return None if value is None else value / unit
