"""Reliability diagrams: how often the model is right when it is so sure."""

from collections.abc import Sequence

import numpy as np

from kdcli.metrics.own_calibration import expected_series
from kdcli.metrics.reliability import equal_width_series, reliability_curve
from kdcli.runs.pictures import figure_of
from kdcli.runs.records import EvalRecord
from kdcli.runs.report.material import Material, short
from kdcli.runs.report.parts import Picture, Section
from kdcli.runs.report.svg import inline
from kdcli.runs.style import look

KINDS = {"ece": equal_width_series, "answer_ece": equal_width_series, "own_ece": expected_series}
"""Scores with a diagram, and what makes its bars from their sums."""

_WORDS = {
    "ece": "ece: bars are bins of next-token predictions on the references of similar confidence: how sure the student "
    "was (across) and how often its likeliest token was right (up).",
    "answer_ece": "answer_ece: the same of whole answers among given choices.",
    "own_ece": "own_ece: the same along the student's own answers, where the teacher's probability of the student's "
    "likeliest token stands for being right.",
}
_READING = (
    "Each with a 95 % interval over examples. The hatched part is the gap to the mean confidence of the bin; bars "
    "below the diagonal are overconfident. Below, how many predictions a bin holds. Bars hold the predictions of all "
    "seeds together. The number is the table's: the mean over seeds of each seed's own ECE, its mean gap by count; "
    "gaps of seeds that point apart cancel in the bars and not in the number."
)


def reliability(material: Material) -> Section | None:
    """Return one diagram per score and contender, its seeds taken together; None if calibration was not measured."""
    pictures, words = [], []
    for kind in KINDS:
        found = [
            (label, sums, float(np.mean([one.estimates[kind].mean for one in seeds if kind in one.estimates])))
            for label, seeds in material.evaluations.items()
            if (sums := bins(material, seeds, kind)) is not None
        ]
        drawn = [
            _draw(material, label, kind, sums, error, len(pictures) + index)
            for index, (label, sums, error) in enumerate(found)
        ]
        pictures += drawn
        words += [_WORDS[kind]] if drawn else []
    if not pictures:
        return None
    return Section("calibration", "Reliability diagrams", [*words, _READING], pictures=pictures)


def bins(material: Material, seeds: Sequence[EvalRecord], kind: str = "ece") -> np.ndarray | None:
    """Return count, confidence and correct of each bin, added up over all seeds, ``[examples, 3 * bins]``.

    Args:
        material: what the report reads.
        seeds: evaluations of one contender.
        kind: a score in ``KINDS``.
    """
    total = None
    for found in seeds:
        samples = material.samples(found)
        if samples is None or f"{kind}.sums" not in samples.column_names:
            continue
        sums = np.array(samples[f"{kind}.sums"].to_pylist(), dtype=np.float64)
        total = sums if total is None else total + sums
    return total


def _draw(material: Material, label: str, kind: str, sums: np.ndarray, error: float, index: int) -> Picture:
    part = KINDS[kind](f"{short(label)}, {kind} {error:.3f}", sums)
    with look():
        figure = figure_of(reliability_curve(f"reliability{index}", "", (part,)), (material.colour(label),))
        words = f"Reliability diagram of {label}, {kind} {error:.3f}"
        return Picture(inline(figure, f"reliability{index}", words))
