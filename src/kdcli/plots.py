"""One look for every picture: colours that the colour-blind can tell apart, labelled axes, PNG and SVG."""

import io
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, StrMethodFormatter

from kdcli.metrics.curve import Curve, Series
from kdcli.storage import atomic
from kdcli.text import one_line

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1)), (0, (3, 1)), "-", "--")
GREY = "#8A8A8A"

_LOOK: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "svg.hashsalt": "kd",
    "svg.fonttype": "path",
    "text.parse_math": False,
    "figure.constrained_layout.use": True,
}


@contextmanager
def plot_style() -> Iterator[None]:
    """Draw in the common look; the user's own settings come back afterwards."""
    with mpl.rc_context():
        backend = mpl.get_backend()
        mpl.rcdefaults()
        mpl.rcParams.update(_LOOK)
        mpl.rcParams["backend"] = backend
        yield


def panels(count: int, *, width: float = 3.0, height: float = 2.4, columns: int = 4) -> tuple[Figure, list[Axes]]:
    """Return a figure with a grid of panels, no emptier than it must be.

    Args:
        count: panels.
        width: inches of one panel.
        height: inches of one panel.
        columns: panels in a line at most.
    """
    across = min(count, columns)
    down = -(-count // across)
    figure = Figure(figsize=(width * across, height * down))
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(down, across, index + 1) for index in range(count)]
    return figure, axes


def lines_panel(count: int, *, width: float = 3.9) -> tuple[Figure, Axes]:
    """Return a figure of one panel for ``count`` lines whose names stand inside it.

    Its margins in inches are known beforehand, so that no layout is computed.
    """
    height = 0.75 + 0.4 * count
    figure = Figure(figsize=(width, height))
    _without_layout(figure)
    FigureCanvasAgg(figure)
    figure.subplots_adjust(left=0.15 / width, right=1 - 0.15 / width, bottom=0.3 / height, top=1 - 0.26 / height)
    return figure, figure.add_subplot()


def fix_layout(figure: Figure) -> None:
    """Compute a figure's layout now and keep it; each saving would draw everything once more to compute it anew."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        _without_layout(figure)


def _without_layout(figure: Figure) -> None:
    """Remove the layout engine; "none" would leave a substitute, for which each saving draws twice all the same."""
    with mpl.rc_context({"figure.constrained_layout.use": False, "figure.autolayout": False}):
        figure.set_layout_engine(None)


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write ``name.png`` and ``name.svg``; equal figures give equal bytes."""
    fix_layout(figure)
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=160, metadata=metadata)
        atomic.write_file(folder / f"{name}.{kind}", buffer.getvalue())


def log_heights(ax: Axes) -> None:
    """Give an axes a logarithmic height, its numbers written out; texts are never read as formulae here."""
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Return the running mean over the last ``window`` values, over fewer at the start.

    >>> smooth([1.0, 3.0, 5.0], 2)
    [1.0, 2.0, 4.0]
    """
    return [sum(part) / len(part) for end in range(1, len(values) + 1) if (part := values[max(0, end - window) : end])]


# Draws curves, all in the same style.


_WIDEST = 60
"""Letters of a title or a label."""

_MARKED = 30
"""Points up to which a line shows each of them."""

_ROOM = 56
"""Small letters that fit side by side below a picture."""

_LETTERS = 13
"""Letters of a title to an inch."""

_GAP = "#D55E00"


def draw(folder: Path, curve: Curve) -> None:
    """Write a curve as ``NAME.png`` and ``NAME.svg``; equal curves give equal bytes."""
    with plot_style():
        save(figure_of(curve), folder, curve.name)


def figure_of(curve: Curve, colours: Sequence[str] = COLOURS) -> Figure:
    """Return a curve's figure; call it within ``style.look``.

    Args:
        curve: what to draw.
        colours: of the series; a reliability diagram takes the first for all its bars.
    """
    if curve.kind == "reliability":
        return _reliability(curve, colours[0])
    figure, (ax,) = panels(1, width=4.6, height=3.1)
    draw_one = {"line": _line, "points": _points, "bars": _bars}[curve.kind]
    for index, one in enumerate(curve.series):
        draw_one(ax, one, colours[index % len(colours)], index, len(curve.series))
    ax.set_title("\n".join(one_line(line, _WIDEST) for line in curve.title.split("\n")), loc="left")
    ax.set_xlabel(one_line(curve.x_label, _WIDEST))
    ax.set_ylabel(one_line(curve.y_label, _WIDEST))
    if curve.ticks:
        _name_groups(ax, [one_line(name, _WIDEST) for name in curve.ticks])
    elif curve.kind == "line":
        ax.margins(x=0.02)
    if len(curve.series) > 1:
        ax.legend(fontsize=7.5)
    return figure


def _name_groups(ax: Axes, names: list[str]) -> None:
    """Name every group below the axis, aslant where the names would run into each other."""
    ax.set_xticks(range(len(names)), names, fontsize=7.5)
    ax.set_xlim(-0.6, len(names) - 0.4)
    if max(map(len, names)) * len(names) > _ROOM:
        ax.tick_params(axis="x", labelrotation=35)
        for label in ax.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")


def _line(ax: Axes, one: Series, colour: str, index: int, _: int) -> None:
    marker = "o" if len(one.x) <= _MARKED else None
    label, dash = one_line(one.label, _WIDEST), DASHES[index % len(DASHES)]
    ax.plot(one.x, one.y, color=colour, linestyle=dash, marker=marker, markersize=3, label=label)
    if one.low is not None and one.high is not None:
        ax.fill_between(one.x, one.low, one.high, color=colour, alpha=0.18, linewidth=0)


def _points(ax: Axes, one: Series, colour: str, index: int, several: int) -> None:
    x = np.array(one.x) + (index - (several - 1) / 2) * 0.5 / several
    ax.errorbar(
        x, one.y, yerr=_errors(one), fmt="o", markersize=4.5, linewidth=1.1, color=colour,
        linestyle=DASHES[index % len(DASHES)], label=one_line(one.label, _WIDEST),
    )  # fmt: skip


def _bars(ax: Axes, one: Series, colour: str, index: int, several: int) -> None:
    left, width = _stretches(one)
    part = width / several
    ax.bar(
        left + index * part, one.y, part, align="edge", yerr=_errors(one), ecolor="#333333", edgecolor="white",
        linewidth=0.4, color=colour, label=one_line(one.label, _WIDEST),
        error_kw={"elinewidth": 0.8},
    )  # fmt: skip


def _reliability(curve: Curve, colour: str) -> Figure:
    """Draw each series above its counts, the gap between confidence and accuracy in another colour."""
    several = len(curve.series)
    across = max(3.2, 2.7 * several)
    figure = Figure(figsize=(across, 3.9))
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, several, sharex=True, squeeze=False, height_ratios=(3, 1))
    for one, ax, below in zip(curve.series, upper, lower, strict=True):
        left, width = _stretches(one)
        ax.bar(left, one.y, width, align="edge", color=colour, alpha=0.85, edgecolor="white", linewidth=0.5)
        gaps = np.array(one.x) - np.array(one.y)
        ax.bar(
            left, gaps, width, bottom=one.y, align="edge", facecolor=f"{_GAP}30", edgecolor=_GAP,
            linewidth=0.6, hatch="////", label="gap to confidence",
        )  # fmt: skip
        ax.errorbar(left + width / 2, one.y, yerr=_errors(one), fmt="none", ecolor="#222222", elinewidth=0.9, capsize=2)
        ax.plot([0, 1], [0, 1], color="#333333", linewidth=0.8, linestyle="--")
        ax.set(xlim=(0, 1), ylim=(0, 1))
        ax.set_title(one_line(one.label, _WIDEST), loc="left", fontsize=9)
        if one.count is not None:
            below.bar(left, one.count, width, align="edge", color=GREY, edgecolor="white", linewidth=0.5)
        below.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        below.set_xlabel(one_line(curve.x_label, _WIDEST))
    upper[0].set_ylabel(one_line(curve.y_label, _WIDEST))
    lower[0].set_ylabel("count")
    if curve.title:
        title = textwrap.fill(one_line(curve.title, _WIDEST * 2), round(_LETTERS * across))
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    figure.legend(*upper[0].get_legend_handles_labels(), fontsize=7.5, loc="outside lower right")
    return figure


def _stretches(one: Series) -> tuple[np.ndarray, np.ndarray]:
    """Return where each bar begins and how wide it is; bars without edges stand around their x."""
    x = np.array(one.x)
    if one.left is not None and one.right is not None:
        return np.array(one.left), np.array(one.right) - np.array(one.left)
    width = 0.8 * (float(np.diff(np.sort(x)).min()) if len(x) > 1 else 1.0)
    return x - width / 2, np.full(len(x), width)


def _errors(one: Series) -> np.ndarray | None:
    """Return the distances to both ends of the interval, ``[2, points]``; none where it is unknown."""
    if one.low is None or one.high is None:
        return None
    ends = np.array([np.array(one.y) - np.array(one.low), np.array(one.high) - np.array(one.y)])
    return np.maximum(ends, 0.0)
