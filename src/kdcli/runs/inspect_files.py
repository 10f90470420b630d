"""An inspected batch on disk: ``batch.json``, and the cosines as a heat map."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from kdcli import durable
from kdcli.runs.inspect_batch import BatchReport
from kdcli.runs.style import look, panels, save
from kdcli.text import one_line


def write_batch(folder: Path, found: BatchReport) -> None:
    """Write the numbers, and ``cosines.png`` and ``cosines.svg``.

    Raises:
        MachineError: the folder may not be written.
    """
    durable.make_folder(folder)
    text = json.dumps(_finite(dataclasses.asdict(found)), indent=1, ensure_ascii=False, allow_nan=False)
    durable.write_file(folder / "batch.json", text + "\n")
    draw_cosines(folder, found)


def draw_cosines(folder: Path, found: BatchReport) -> None:
    """Draw the cosine of each pair of gradients: 1 pulls the same way, 0 is unrelated, -1 undoes the other."""
    labels = [one_line(one.label, 24) for one in found.objectives]
    with look():
        side = max(3.2, 0.75 * len(labels) + 1.6)
        figure, (ax,) = panels(1, width=side, height=side)
        ax.imshow(found.cosines, vmin=-1.0, vmax=1.0, cmap="RdBu")
        ax.set_xticks(range(len(labels)), labels, rotation=35, ha="right")
        ax.set_yticks(range(len(labels)), labels)
        ax.grid(visible=False)
        for row, line in enumerate(found.cosines):
            for column, value in enumerate(line):
                colour = "white" if abs(value) > 0.6 else "black"
                shown = "–" if math.isnan(value) else f"{value:.2f}"
                ax.text(column, row, shown, ha="center", va="center", color=colour)
        ax.set_title("cosine between gradients, one batch", loc="left")
        save(figure, folder, "cosines")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
