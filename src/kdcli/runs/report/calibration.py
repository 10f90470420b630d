"""Reliability diagrams: how often the model is right when it is so sure."""

import numpy as np

from kdcli.metrics.bins import calibration_error
from kdcli.metrics.reliability import equal_width_series, reliability_curve
from kdcli.runs.aggregate import Group
from kdcli.runs.pictures import figure_of
from kdcli.runs.report.material import Material, short
from kdcli.runs.report.parts import Picture, Section
from kdcli.runs.report.svg import inline
from kdcli.runs.style import look

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
        "Bars are bins of next-token predictions of similar confidence: how sure the student was (across) and how "
        "often its likeliest token was right (up), with a 95 % interval over examples. The hatched part is the gap to "
        "the mean confidence of the bin; bars below the diagonal are overconfident. Below, how many predictions a bin "
        "holds. ECE is the mean gap by count."
    ]
    return Section("calibration", "Reliability diagrams", words, pictures=pictures)


def bins(material: Material, group: Group) -> np.ndarray | None:
    """Return count, confidence and correct of each bin, added up over all seeds, ``[examples, 3 * bins]``."""
    total = None
    for _, found in group.runs.values():
        samples = material.samples(found)
        if samples is None or COLUMN not in samples.column_names:
            continue
        sums = np.array(samples[COLUMN].to_pylist(), dtype=np.float64)
        total = sums if total is None else total + sums
    return total


def _draw(material: Material, group: Group, sums: np.ndarray, index: int) -> Picture:
    error = float(calibration_error(sums.sum(0)))
    part = equal_width_series(f"{short(group.label)}, ECE {error:.3f}", sums)
    with look():
        figure = figure_of(reliability_curve(f"reliability{index}", "", (part,)), material.colour(group.label))
        words = f"Reliability diagram of {group.label}, expected calibration error {error:.3f}"
        return Picture(inline(figure, f"reliability{index}", words))
