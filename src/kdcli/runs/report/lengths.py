"""Quality by answer length: where along the length of the reference a contender gains or loses."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import stdtrit

from kdcli.bounded import ANYWHERE, Bounds, score_interval
from kdcli.metrics.scripts import length_unit
from kdcli.registry import METRICS
from kdcli.runs.records import EvalRecord, ScoreInfo
from kdcli.runs.report.material import Material, short
from kdcli.runs.report.parts import Picture, Section, Table
from kdcli.runs.report.svg import inline
from kdcli.runs.style import DASHES, look, panels

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


def quality_by_length(material: Material) -> Section | None:
    """Return scores of answers by length of the reference; None if no answers were generated."""
    infos = [info for info in material.ranked if info.eats == "texts"]
    buckets = _buckets(material)
    if buckets is None or not infos:
        return None
    pictures = [
        picture
        for index, info in enumerate(infos[:3])
        if (picture := _draw(material, info, buckets, index)) is not None
    ]
    if not pictures:
        return None
    words = [
        "Held-out examples in groups of similar reference length; each dot is a contender's mean over the group, seeds "
        "taken together, with its 95 % interval over the group's examples. Lines that cross say that the ranking "
        "depends on how long the answers are.",
    ]
    title = f"Mean {buckets.unit} of an answer, by {buckets.unit} of its reference"
    table = Table(title, *_answer_lengths(material, buckets))
    return Section("lengths", "Quality by answer length", words, pictures=pictures, tables=[table])


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


def _buckets(material: Material) -> Buckets | None:
    for group in material.groups:
        for _, found in group.runs.values():
            samples = material.samples(found)
            if samples is not None and "references" in samples.column_names and samples.num_rows >= LEAST:
                rows = samples["references"].to_pylist()
                unit, length = length_unit(text for row in rows for text in row)
                lengths = np.array([max(map(length, row), default=0) for row in rows])
                return replace(make_buckets(lengths, unit=unit), length=length)
    return None


def _draw(material: Material, info: ScoreInfo, buckets: Buckets, index: int) -> Picture | None:
    with look():
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
        ax.set_ylabel(info.name)
        ax.legend(fontsize=7.5, loc="upper center", bbox_to_anchor=(0.5, -0.32), ncols=1 if _long(material) else 2)
        return Picture(inline(figure, f"length{index}", f"{info.name} by length of the reference, for each contender"))


def _values(material: Material, seeds: Sequence[EvalRecord], score: str, examples: int) -> np.ndarray | None:
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


def _answer_lengths(material: Material, buckets: Buckets) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
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


def _long(material: Material) -> bool:
    return max(map(len, material.evaluations)) > 18
