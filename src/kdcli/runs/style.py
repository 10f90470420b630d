"""One look for every picture: colours that the colour-blind can tell apart, labelled axes, PNG and SVG."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from kdcli import durable

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
def look() -> Iterator[None]:
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


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write ``name.png`` and ``name.svg``; equal figures give equal bytes."""
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=160, metadata=metadata)
        durable.write_file(folder / f"{name}.{kind}", buffer.getvalue())


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
