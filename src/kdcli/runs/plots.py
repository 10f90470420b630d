"""Training curves of a comparison."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.ticker import MaxNLocator

from kdcli.engine.journal import read_metrics
from kdcli.runs.aggregate import Group
from kdcli.runs.style import COLOURS, DASHES, look, panels, save, smooth
from kdcli.text import one_line

_LONGEST_TITLE = 38


def draw_curves(folder: Path, groups: Sequence[Group]) -> None:
    """Draw each objective's own training loss, one panel each, as ``curves.png`` and ``curves.svg``.

    Values of different objectives do not compare, so every panel has a scale of its own.
    """
    with look():
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
