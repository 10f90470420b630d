"""Curves of the evaluations, all contenders in one picture: along the answer, and by its length."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from kdcli.metrics.curve import Curve, Series, series
from kdcli.runs.aggregate import Group
from kdcli.runs.pictures import figure_of
from kdcli.runs.records import EvalRecord
from kdcli.runs.report.material import Material, short
from kdcli.runs.report.parts import Picture, Section
from kdcli.runs.report.svg import inline
from kdcli.runs.style import GREY, look

Found: TypeAlias = Mapping[str, Sequence[Curve]]
"""From the label of a contender to one curve per seed."""


def along(material: Material) -> Section | None:
    """Return one picture for each line of each curve that was measured; None if there are none."""
    pictures = [
        picture
        for number, name in enumerate(_names(material.groups))
        for picture in _pictures(
            material, name, {label: _curves(found, name) for label, found in material.evaluations.items()}, number
        )
    ]
    if not pictures:
        return None
    words = [
        "Lines and bars are means over training seeds; bands and error bars are the 95 % intervals over examples, "
        "averaged over the seeds. A line ends where one of its seeds has no answer that long."
    ]
    return Section("along", "Along the answers", words, pictures=pictures)


def mean_of(label: str, seeds: Sequence[Series]) -> Series:
    """Return the mean of several seeds' lines, as far as all of them go.

    Args:
        label: what a legend calls it.
        seeds: the same line of each seed, at the same x as far as they go.

    >>> mean_of("fkl", [series("a", [1, 2], [4.0, 6.0]), series("a", [1], [2.0])]).y
    (3.0,)
    """
    shared = [x for x in seeds[0].x if all(x in one.x for one in seeds)]
    values: dict[str, np.ndarray | None] = {}
    for part in ("y", "low", "high", "count", "left", "right"):
        lines = [_at(one, part, shared) for one in seeds]
        values[part] = None if any(line is None for line in lines) else np.mean(np.array(lines, dtype=float), axis=0)
    middle = values.pop("y")
    assert middle is not None, "every line has heights"
    return series(label, shared, middle, **values)


def _at(one: Series, part: str, shared: Sequence[float]) -> list[float] | None:
    values = getattr(one, part)
    return None if values is None else [values[one.x.index(x)] for x in shared]


def _names(groups: Sequence[Group]) -> list[str]:
    curves = [
        curve
        for group in groups
        for _, found in group.runs.values()
        for curve in found.curves
        if curve.kind != "reliability"  # those have a section of their own
    ]
    return list(dict.fromkeys(curve.name for curve in curves))


def _curves(seeds: Sequence[EvalRecord], name: str) -> list[Curve]:
    """Return the curve of every seed; none where a seed lacks it, for then there is no mean over the seeds."""
    found = [[curve for curve in record.curves if curve.name == name] for record in seeds]
    return [curve for (curve,) in found] if all(len(curves) == 1 for curves in found) else []


def _pictures(material: Material, name: str, found: Found, number: int) -> list[Picture]:
    kept = {label: curves for label, curves in found.items() if curves}
    if not kept:
        return []
    first = max((curves[0] for curves in kept.values()), key=lambda curve: len(curve.ticks))
    same = _same(kept) if first.kind == "bars" else []
    lines = [one.label for one in first.series if one.label not in {each.label for each in same}]
    drawn = []
    for place, line in enumerate(lines or [first.series[0].label]):
        parts = [(short(label), mean_of(short(label), _lines(curves, line))) for label, curves in kept.items()]
        title = first.title if len(lines) < 2 else f"{first.title}\n{line}"
        curve = replace(first, title=title, series=(*(one for _, one in parts), *same))
        colours = [*(material.colour(label) for label in kept), *[GREY] * len(same)]
        with look():
            figure = figure_of(curve, colours)
            spoken = title.replace("\n", ": ")
            words = f"{spoken}, {curve.y_label} by {curve.x_label}, for each contender"
            drawn.append(Picture(inline(figure, f"along{number}x{place}", words)))
    return drawn


def _lines(curves: Sequence[Curve], label: str) -> list[Series]:
    """Return a line of every seed; histograms all as long as the longest, with bars of height 0."""
    found = [one for curve in curves for one in curve.series if one.label == label]
    if curves[0].kind != "bars":
        return found
    every = max((one.x for one in found), key=len)
    return [series(label, every, np.pad(one.y, (0, len(every) - len(one.y)))) for one in found]


def _same(found: Found) -> list[Series]:
    """Return the lines that all runs share, such as the references' lengths, where a contender has more than those."""
    every = [curve for curves in found.values() for curve in curves]
    same = [one for one in every[0].series if all(one in curve.series for curve in every)]
    return same if len(same) < len(every[0].series) else same[1:]
