"""The parts of a report: sections with text, pictures, tables and answers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from markupsafe import Markup

from kdcli.comparison.aggregate import Group
from kdcli.comparison.records import Comparison
from kdcli.distill.records import BEFORE, TEACHER, Reference, RunRecord
from kdcli.evaluation.records import EvalRecord, ScoreInfo
from kdcli.evaluation.results import SAMPLES, read_samples
from kdcli.plots import COLOURS, GREY, panels, plot_style
from kdcli.report.svg import inline
from kdcli.text import one_line
from kdcli.training.metrics_log import METRICS, read_metrics


@dataclass(frozen=True)
class Picture:
    """One drawing.

    Args:
        svg: an ``<svg>`` element.
        caption: what stands below it.
    """

    svg: Markup
    caption: str = ""


ACROSS = 2
"""Columns of numbers beside each other in one block of a table."""


@dataclass(frozen=True)
class Table:
    """One table.

    Args:
        caption: what stands above it.
        heads: one text per column.
        rows: one text per column and line; the first column names the line.
        numbers: whether all columns but the first hold numbers.
    """

    caption: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: bool = True

    @property
    def blocks(self) -> list["Table"]:
        """The table in parts of few columns, which a page puts beside or below each other.

        >>> [part.heads for part in Table("", ("line", "a", "b", "c", "d"), (("x", "1", "2", "3", "4"),)).blocks]
        [('line', 'a', 'b'), ('line', 'c', 'd')]
        """
        if not self.numbers or len(self.heads) <= ACROSS + 1:
            return [self]
        cuts = range(1, len(self.heads), ACROSS)
        parts = [[(row[0], *row[cut : cut + ACROSS]) for row in (self.heads, *self.rows)] for cut in cuts]
        return [Table(self.caption, heads, tuple(rows)) for heads, *rows in parts]


@dataclass(frozen=True)
class AnswerExample:
    """Answers to one prompt.

    Args:
        where: file and line.
        why: why this prompt is shown.
        prompt: what was asked.
        references: valid answers.
        answers: contender -> its answer and a remark.
        apart: how far the contenders' scores are apart on it.
    """

    where: str
    why: str
    prompt: str
    references: tuple[str, ...]
    answers: tuple[tuple[str, str, str], ...]
    apart: float = 0.0


@dataclass(frozen=True)
class Section:
    """One part of the report.

    Args:
        anchor: its place in the page.
        title: its heading.
        words: paragraphs that say what is shown and how to read it.
        remarks: list of single sentences.
        pictures: drawings.
        legend: what the colours and marks of all of them mean.
        tables: tables.
        sheets: answers side by side.
        texts: long texts, such as command lines.
    """

    anchor: str
    title: str
    words: Sequence[str] = ()
    remarks: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    legend: Picture | None = None
    tables: Sequence[Table] = ()
    sheets: Sequence[AnswerExample] = ()
    texts: Sequence[str] = ()


# What a report reads: a comparison, the runs behind it, their logs and their answers, each read once.


REFERENCE_GREYS = {BEFORE: "#A0A0A0", TEACHER: "#505050"}
"""Greys of the reference models, of different lightness."""

LONGEST = 44
"""Letters of a contender's name in a picture."""


@dataclass
class ReportData:
    """A comparison with its runs.

    Args:
        comparison: the tables.
        groups: the runs behind each line.
        references: the reference models' evaluations.
    """

    comparison: Comparison
    groups: tuple[Group, ...]
    references: tuple[Reference, ...] = ()
    _metrics: dict[Path, list[dict[str, Any]]] = field(default_factory=dict)
    _samples: dict[Path, pa.Table | None] = field(default_factory=dict)

    @property
    def scores(self) -> list[ScoreInfo]:
        """The scores that at least one line has."""
        rows = self.comparison.rows
        return [info for info in self.comparison.scores if any(info.name in row.scores for row in rows)]

    @property
    def ranked(self) -> list[ScoreInfo]:
        """The scores with a better end."""
        return [info for info in self.scores if info.better != "neither"]

    def colour(self, label: str) -> str:
        """Return a contender's colour, the same in every picture; reference models are grey."""
        roles = {one.label: one.role for one in (*self.comparison.references, *self.references)}
        if label in roles and label not in {row.label for row in self.comparison.rows}:
            return REFERENCE_GREYS.get(roles[label], GREY)
        lines = [*self.comparison.rows, *self.groups]
        labels = list(dict.fromkeys(line.label for line in lines))
        return COLOURS[labels.index(label) % len(COLOURS)]

    @property
    def evaluations(self) -> dict[str, list[EvalRecord]]:
        """Return the evaluations behind each line, seed by seed: the reference models, then the contenders."""
        found = {one.label: list(one.found.values()) for one in self.references}
        return found | {group.label: [record for _, record in group.runs.values()] for group in self.groups}

    def metrics(self, run: RunRecord) -> list[dict[str, Any]]:
        """Return the lines of a run's log; none if it was removed."""
        if run.folder not in self._metrics:
            there = (run.folder / METRICS).is_file()
            self._metrics[run.folder] = read_metrics(run.folder) if there else []
        return self._metrics[run.folder]

    def samples(self, found: EvalRecord) -> pa.Table | None:
        """Return what was measured example by example; None if it was not kept."""
        if found.folder is None or not (found.folder / SAMPLES).is_file():
            return None
        if found.folder not in self._samples:
            self._samples[found.folder] = read_samples(found.folder)
        return self._samples[found.folder]


def legend_of(material: ReportData, lines: Sequence[tuple[str, dict[str, Any]]], key: str) -> Picture:
    """Return what the colours, marks and lines of a section's pictures mean, once for all of them.

    Args:
        material: gives each line its colour.
        lines: name and look of each.
        key: as for :func:`kdcli.report.svg.inline`.
    """
    across = min(len(lines), 3 if max(len(short(label)) for label, _ in lines) < 20 else 1)
    with plot_style():
        figure, (ax,) = panels(1, width=5.6, height=0.12 + 0.24 * -(-len(lines) // across))
        for label, drawn in lines:
            ax.plot([], [], color=material.colour(label), label=short(label), **drawn)
        ax.axis("off")
        ax.legend(loc="center left", fontsize=8.5, ncols=across, borderaxespad=0.0)
        return Picture(inline(figure, key, "Legend of the pictures below"))


def short(label: str) -> str:
    """Return a contender's name as it stands in a picture."""
    return one_line(label, LONGEST)


def thin(xs: list[float], ys: list[float], most: int = 300) -> tuple[list[float], list[float]]:
    """Return at most so many points of a line, evenly spread, both ends included.

    >>> thin([0.0, 1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0, 9.0], 3)
    ([0.0, 2.0, 4.0], [5.0, 7.0, 9.0])
    """
    if len(xs) <= most:
        return xs, ys
    kept = sorted({round(index * (len(xs) - 1) / (most - 1)) for index in range(most)})
    return [xs[index] for index in kept], [ys[index] for index in kept]
