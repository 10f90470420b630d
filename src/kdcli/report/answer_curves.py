"""Curves of evaluations, all variants in one picture: along the answer, and by its length."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from scipy.special import stdtrit

from kdcli.bounded import ANYWHERE, Bounds, score_interval
from kdcli.comparison.aggregate import Group
from kdcli.evaluation.records import EvalRecord, ScoreInfo
from kdcli.metrics.calibration import equal_width_series, reliability_curve
from kdcli.metrics.curve import Curve, Series, series
from kdcli.metrics.diversity import length_unit
from kdcli.metrics.on_policy import expected_series
from kdcli.plots import DASHES, GREY, figure_of, panels, plot_style
from kdcli.registry.registry import METRICS
from kdcli.report.sections import Picture, ReportData, Section, Table, legend_of, short
from kdcli.report.svg import inline

Found: TypeAlias = Mapping[str, Sequence[Curve]]
"""From the label of a contender to one curve per seed."""


def answer_curves(material: ReportData) -> Section | None:
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


def _pictures(material: ReportData, name: str, found: Found, number: int) -> list[Picture]:
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
        with plot_style():
            figure = figure_of(curve, colours)
            heading = title.replace("\n", ": ")
            words = f"{heading}, {curve.y_label} by {curve.x_label}, for each objective"
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


# Reliability diagrams: how often the model is right when it is so sure.


KINDS = {"ece": equal_width_series, "answer_ece": equal_width_series, "on_policy_ece": expected_series}
"""Scores with a diagram, and what makes its bars from their sums."""

_WORDS = {
    "ece": "ece: bars are bins of next-token predictions on the references of similar confidence: how sure the student "
    "was (across) and how often its likeliest token was right (up).",
    "answer_ece": "answer_ece: the same of whole answers among given choices.",
    "on_policy_ece": "on_policy_ece: the same along the student's own answers, where the teacher's probability of the "
    "student's likeliest token stands for being right.",
}
_READING = (
    "Each with a 95 % interval over examples. The hatched part is the gap to the mean confidence of the bin; bars "
    "below the diagonal are overconfident. Below, how many predictions a bin holds. Bars hold the predictions of all "
    "seeds together. The number is the table's: the mean over seeds of each seed's own ECE, its mean gap by count; "
    "gaps of seeds that point apart cancel in the bars and not in the number."
)


def reliability(material: ReportData) -> Section | None:
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


def bins(material: ReportData, seeds: Sequence[EvalRecord], kind: str = "ece") -> np.ndarray | None:
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


def _draw(material: ReportData, label: str, kind: str, sums: np.ndarray, error: float, index: int) -> Picture:
    part = KINDS[kind](f"{short(label)}, {kind} {error:.3f}", sums)
    with plot_style():
        figure = figure_of(reliability_curve(f"reliability{index}", "", (part,)), (material.colour(label),))
        words = f"Reliability diagram of {label}, {kind} {error:.3f}"
        return Picture(inline(figure, f"reliability{index}", words))


# Quality by answer length: where along the length of the reference a contender gains or loses.


BUCKETS = 4
LEAST = 8
"""Examples below which nothing is cut into buckets."""


@dataclass(frozen=True)
class Buckets:
    """Examples grouped by the length of their longest reference.

    Args:
        names: one text per bucket, such as "3–7".
        member: bucket of each example, ``[examples]``.
        unit: what lengths are counted in.
        length: counts it in a text.
    """

    names: tuple[str, ...]
    member: np.ndarray
    unit: str = "words"
    length: Callable[[str], int] = len

    @property
    def counts(self) -> list[int]:
        """Examples in each bucket."""
        return [int((self.member == index).sum()) for index in range(len(self.names))]


def quality_by_length(material: ReportData) -> Section | None:
    """Return scores of answers by length of the reference; None if no answers were generated."""
    infos = [info for info in material.ranked if info.input_kind == "texts"]
    buckets = _buckets(material)
    if buckets is None or not infos:
        return None
    pictures = [
        picture
        for index, info in enumerate(infos[:3])
        if (picture := _lengths_draw(material, info, buckets, index)) is not None
    ]
    if not pictures:
        return None
    words = [
        "Held-out examples in groups of similar reference length; each dot is an objective's mean over the group, "
        "seeds taken together, with its 95 % interval over the group's examples. Lines that cross say that the ranking "
        "depends on how long the answers are.",
    ]
    title = f"Mean {buckets.unit} of an answer, by {buckets.unit} of its reference"
    table = Table(title, *_answer_lengths(material, buckets))
    marks = [
        (label, {"marker": "o", "markersize": 4.5, "linestyle": DASHES[number % len(DASHES)]})
        for number, label in enumerate(material.evaluations)
    ]
    legend = legend_of(material, marks, "legend-lengths")
    return Section("lengths", "Quality by answer length", words, pictures=pictures, tables=[table], legend=legend)


def make_buckets(words: np.ndarray, most: int = BUCKETS, unit: str = "words") -> Buckets:
    """Cut examples into groups of about equal size by length.

    Args:
        words: length of each example's reference, ``[examples]``.
        most: groups at most; fewer where many lengths are equal.
        unit: what lengths are counted in.

    >>> make_buckets(np.array([1, 1, 2, 3, 9, 9, 20, 30]), 2).names
    ('1–3 words', '9–30 words')
    """
    edges = np.unique(np.quantile(words, np.linspace(0, 1, most + 1)[1:-1], method="higher"))
    member = np.searchsorted(edges, words, side="right")
    kept = [index for index in range(len(edges) + 1) if (member == index).any()]
    names = []
    for index in kept:
        inside = words[member == index]
        low, high = int(inside.min()), int(inside.max())
        names.append(f"{low} {unit}" if low == high else f"{low}–{high} {unit}")
    return Buckets(tuple(names), np.searchsorted(kept, member), unit)


def _buckets(material: ReportData) -> Buckets | None:
    for group in material.groups:
        for _, found in group.runs.values():
            samples = material.samples(found)
            if samples is not None and "references" in samples.column_names and samples.num_rows >= LEAST:
                rows = samples["references"].to_pylist()
                unit, length = length_unit(text for row in rows for text in row)
                lengths = np.array([max(map(length, row), default=0) for row in rows])
                return replace(make_buckets(lengths, unit=unit), length=length)
    return None


def _lengths_draw(material: ReportData, info: ScoreInfo, buckets: Buckets, index: int) -> Picture | None:
    with plot_style():
        figure, (ax,) = panels(1, width=4.2, height=2.9)
        drawn = 0
        lines = material.evaluations
        for number, (label, seeds) in enumerate(lines.items()):
            values = _values(material, seeds, info.name, len(buckets.member))
            if values is None:
                continue
            shift = (number - (len(lines) - 1) / 2) * 0.6 / max(1, len(lines))
            means, ends = _means(values, buckets, _bounds(info))
            ax.errorbar(
                np.arange(len(means)) + shift, means, yerr=ends, fmt="o", markersize=4.5, linewidth=1.1,
                linestyle=DASHES[number % len(DASHES)], color=material.colour(label), label=short(label),
            )  # fmt: skip
            drawn += 1
        if not drawn:
            return None
        counts = [f"{name}\nn={count}" for name, count in zip(buckets.names, buckets.counts, strict=True)]
        ax.set_xticks(range(len(counts)), counts, fontsize=7.5)
        ax.set_xlabel("length of the reference")
        ax.set_ylabel(info.heading)
        return Picture(inline(figure, f"length{index}", f"{info.title} by length of the reference, for each objective"))


def _values(material: ReportData, seeds: Sequence[EvalRecord], score: str, examples: int) -> np.ndarray | None:
    """Return the mean over seeds of each example's score, ``[examples]``; NaN where no seed has one."""
    found = []
    for record in seeds:
        samples = material.samples(record)
        if samples is not None and score in samples.column_names and samples.num_rows == examples:
            found.append(samples[score].to_numpy(zero_copy_only=False).astype(np.float64))
    return np.mean(found, axis=0) if found else None


def _bounds(info: ScoreInfo) -> Bounds:
    """Return the range of a score of our own metrics; a guest's code is not run for a report."""
    return METRICS.resolve(info.metric).bounds.get(info.name, ANYWHERE) if info.metric in METRICS.table else ANYWHERE


def _means(values: np.ndarray, buckets: Buckets, bounds: Bounds) -> tuple[np.ndarray, np.ndarray]:
    """Return each group's mean, ``[groups]``, and its distances to both ends of its 95 % interval, ``[2, groups]``."""
    means, ends = [], []
    for index in range(len(buckets.names)):
        inside = values[buckets.member == index]
        inside = inside[np.isfinite(inside)]
        mean = float(inside.mean()) if len(inside) else np.nan
        low = high = np.nan
        if len(inside) > 1:
            quantile = stdtrit(len(inside) - 1, 0.975)
            half = quantile * inside.std(ddof=1) / np.sqrt(len(inside))
            low, high = score_interval(mean, half, bounds, quantile**2 / len(inside))
        means.append(mean)
        ends.append((mean - low, high - mean))
    return np.array(means), np.array(ends).T


def _answer_lengths(material: ReportData, buckets: Buckets) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    rows = []
    for label, seeds in material.evaluations.items():
        lengths = []
        for record in seeds:
            samples = material.samples(record)
            if samples is not None and "predictions" in samples.column_names:
                answers = samples["predictions"].to_pylist()
                lengths.append([float(np.mean([buckets.length(text) for text in row] or [0])) for row in answers])
        if lengths:
            mean = np.mean(lengths, axis=0)
            cells = [f"{mean[buckets.member == index].mean():.1f}" for index in range(len(buckets.names))]
            rows.append((label, *cells))
    return ("objective", *buckets.names), tuple(rows)
