"""Reliability diagrams: how often the model is right when it is so sure."""

import numpy as np

from kdcli.metrics.calibration import calibration_error
from kdcli.runs.aggregate import Group
from kdcli.runs.report.material import Material, short
from kdcli.runs.report.parts import Picture, Section
from kdcli.runs.report.svg import inline
from kdcli.runs.style import GREY, look, panels

COLUMN = "ece.sums"


def reliability(material: Material) -> Section | None:
    """Return one diagram per contender, its seeds taken together; None if calibration was not measured."""
    pictures = []
    for index, group in enumerate(material.groups):
        sums = bins(material, group)
        if sums is None:
            continue
        pictures.append(_draw(material, group, sums, index))
    if not pictures:
        return None
    words = [
        "Each dot is a bin of next-token predictions of similar confidence: how sure the student was (across) and how "
        "often its likeliest token was right (up). Dots below the diagonal are overconfident, above it underconfident. "
        "Grey bars are the share of all predictions in the bin; ECE is the mean distance to the diagonal by share."
    ]
    return Section("calibration", "Reliability diagrams", words, pictures=pictures)


def bins(material: Material, group: Group) -> np.ndarray | None:
    """Return count, summed confidence and correct predictions of each bin over all seeds, ``[bins, 3]``."""
    total = None
    for _, found in group.runs.values():
        samples = material.samples(found)
        if samples is None or COLUMN not in samples.column_names:
            continue
        sums = np.array(samples[COLUMN].to_pylist(), dtype=np.float64).sum(0)
        total = sums if total is None else total + sums
    return None if total is None else total.reshape(-1, 3)


def _draw(material: Material, group: Group, sums: np.ndarray, index: int) -> Picture:
    count, confidence, correct = sums[sums[:, 0] > 0].T
    edges = np.flatnonzero(sums[:, 0] > 0) / len(sums)
    error = float(calibration_error(sums.reshape(-1)))
    share, colour = count / count.sum(), material.colour(group.label)
    with look():
        figure, (ax,) = panels(1, width=3.0, height=2.9)
        ax.bar(edges, share, width=1 / len(sums), align="edge", color=GREY, alpha=0.3, linewidth=0)
        ax.plot([0, 1], [0, 1], color="#333333", linewidth=0.8, linestyle="--")
        ax.plot(confidence / count, correct / count, color=colour, linewidth=1.2)
        ax.scatter(confidence / count, correct / count, s=12 + 120 * share, color=colour, zorder=3)
        ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy; share of predictions")
        ax.set_title(f"{short(group.label)}\nECE {error:.3f}", loc="left")
        words = f"Reliability diagram of {group.label}, expected calibration error {error:.3f}"
        return Picture(inline(figure, f"reliability{index}", words))
