"""What every form of a table prints: the same strings, rounded once, arranged in one of a few layouts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from kdcli.comparison.against_start import percent_parts
from kdcli.comparison.answer import circumstances, subject
from kdcli.comparison.records import Comparison, ComparisonRow, ReferenceRow
from kdcli.distill.records import BEFORE
from kdcli.evaluation.records import ScoreInfo, is_sparse
from kdcli.statistics import LEVEL, Estimate
from kdcli.statistics.rounding import ABSENT, DIGITS, bracketed, coarser, decimals, interval, plain

ARROWS = {"higher": "↑", "lower": "↓", "neither": ""}
SURE = "*"
COSTS = ("seeds", "steps", "response tokens", "teacher passes", "parameters", "FLOPs")
GENERATED = "generated tokens"
SPARSE = ("zeros", "bytes after zlib")
BEFORE_TITLE = "Difference to the student before training, paired"
CLOSED_TITLE = "Share of the gap from the student before training to the teacher that was closed"
LAYOUTS = ("wide", "two-rows", "value-delta")
"""Differences in a table of their own below the scores, in a line below each score, in a column beside it."""


@dataclass(frozen=True)
class TableStyle:
    r"""How a table is laid out and worded.

    Args:
        columns: names of the scores to show, in this order; all of them by default.
        layout: one of ``LAYOUTS``; by default everything a comparison holds, one table after the other.
        titles: score or line -> what to call it instead of its title.
        digits: significant digits of the median interval of a column, which decide its decimals; 2 by default.
        caption: of the table; by default models, rows, seeds and protocol.
        label: for ``\ref`` in LaTeX.
    """

    columns: tuple[str, ...] = ()
    layout: str = ""
    titles: Mapping[str, str] = field(default_factory=dict)
    digits: int | None = None
    caption: str = ""
    label: str = ""


PLAIN = TableStyle()


@dataclass(frozen=True)
class TableCell:
    """One cell.

    Args:
        mean: the number.
        interval: half its interval, or both ends of it; empty if there is none.
        best: whether no other line is better.
        tied: whether it does not differ significantly from the best.
        sure: whether it is a difference with p < 0.05.
    """

    mean: str
    interval: str = ""
    best: bool = False
    tied: bool = False
    sure: bool = False

    @property
    def text(self) -> str:
        """The cell without emphasis."""
        return " ".join(part for part in (self.mean, self.interval, SURE if self.sure else "") if part)


@dataclass(frozen=True)
class TableRow:
    """One objective's cells.

    Args:
        label: as it came, not yet made safe.
        cells: one per score.
        below: whether it belongs to the line above it.
    """

    label: str
    cells: tuple[TableCell, ...]
    below: bool = False


@dataclass(frozen=True)
class TableView:
    """A comparison as strings.

    Args:
        scores: the columns.
        means: mean with its 95 % interval, as ± or with both ends where it is lopsided.
        differences: paired difference to the baseline with its 95 % interval, without the baseline's line.
        costs: label and one string per name in ``cost_names``.
        baseline: as it came.
        references: the student before training, the teacher, and models trained elsewhere: as ``means``.
        before: paired difference to the student before training, as ``differences``; empty where that was not measured.
        closed: share of the gap from there to the teacher that was closed; empty where there is none.
        titles: score or line -> what to call it instead of its title.
    """

    scores: tuple[ScoreInfo, ...]
    means: tuple[TableRow, ...]
    differences: tuple[TableRow, ...]
    costs: tuple[tuple[str, tuple[str, ...]], ...]
    baseline: str
    cost_names: tuple[str, ...] = COSTS
    references: tuple[TableRow, ...] = ()
    before: tuple[TableRow, ...] = ()
    closed: tuple[TableRow, ...] = ()
    titles: Mapping[str, str] = field(default_factory=dict)

    def heading(self, info: ScoreInfo) -> str:
        """Return what stands above a score's column: title, unit, and which direction is better."""
        return f"{self.titles.get(info.name, info.heading)} {ARROWS[info.better]}".strip()

    def called(self, label: str) -> str:
        """Return what a line is called."""
        return self.titles.get(label, label)


def make_table_view(comparison: Comparison, style: TableStyle = PLAIN) -> TableView:
    """Round a comparison to what its intervals support.

    Args:
        comparison: the numbers.
        style: which scores, in how many digits.
    """
    rows, others = comparison.rows, comparison.references
    generates = any(row.generated_tokens for row in rows)
    sparse = any(is_sparse(row.zeros) for row in rows)
    known = {info.name: info for info in comparison.scores}
    infos = tuple(known[name] for name in style.columns or known)
    places = {info.name: _places(rows, info.name, style.digits or DIGITS) for info in infos}

    def changes(lines: Iterable[ComparisonRow | ReferenceRow], field: str) -> tuple[TableRow, ...]:
        return tuple(
            TableRow(row.label, tuple(_difference(getattr(row, field).get(name), places[name]) for name in places))
            for row in lines
        )

    outside = [row for row in others if row.differences]
    start = any(row.role == BEFORE for row in others)
    closed = [row for row in (*outside, *rows) if any(row.closed.get(name) for name in places)]
    return TableView(
        scores=infos,
        means=tuple(TableRow(row.label, tuple(_mean(row, name, places[name]) for name in places)) for row in rows),
        differences=changes([*outside, *(row for row in rows if row.label != comparison.baseline)], "differences"),
        costs=(
            *((row.label, _size(row) + (ABSENT,) * (generates + 2 * sparse)) for row in others),
            *((row.label, _costs(row) + _generated(row) * generates + _zeros(row) * sparse) for row in rows),
        ),
        baseline=comparison.baseline,
        cost_names=COSTS + (GENERATED,) * generates + SPARSE * sparse,
        references=tuple(
            TableRow(row.label, tuple(_mean(row, name, places[name]) for name in places)) for row in others
        ),
        before=changes([*outside, *rows], "before") if start else (),
        closed=tuple(TableRow(row.label, tuple(_share(row.closed.get(name)) for name in places)) for row in closed),
        titles=style.titles,
    )


def count(value: int | float | None) -> str:
    """Return a count: whole numbers in full, others, such as FLOPs, in three digits.

    >>> count(469_875_223_680.0), count(1234), count(None)
    ('4.7e+11', '1,234', '–')
    """
    if value is None:
        return ABSENT
    return f"{value:.3g}" if isinstance(value, float) else f"{value:,}"


def _places(rows: Sequence[ComparisonRow], name: str, digits: int) -> int:
    means = [row.scores[name] for row in rows if name in row.scores]
    changes = [change for row in rows if (change := row.differences.get(name)) is not None]
    return decimals(_values(means), [one.half_width for one in [*means, *changes]], digits)


def _values(estimates: Iterable[Estimate]) -> list[float]:
    return [one.mean for one in estimates]


def _mean(row: ComparisonRow | ReferenceRow, name: str, places: int) -> TableCell:
    one = row.scores.get(name)
    if one is None or one.mean != one.mean:
        return TableCell(ABSENT)
    if row.is_reference:
        places = coarser(one, places)
    mean, shown = plain(one.mean, places), interval(one.mean, one.low, one.high, places)
    return TableCell(mean, shown, best=name in row.best, tied=name in row.tied)


def _share(one: Estimate | None) -> TableCell:
    if one is None:
        return TableCell(ABSENT)
    return TableCell(*percent_parts(one))


def _size(row: ReferenceRow) -> tuple[str, ...]:
    """Return the costs of a model that was not trained here: its size alone."""
    return tuple(count(row.parameters) if name == "parameters" else ABSENT for name in COSTS)


def _difference(one: Estimate | None, places: int) -> TableCell:
    if one is None or one.mean != one.mean:
        return TableCell(ABSENT)
    sure = one.p_value is not None and one.p_value < LEVEL
    ends = bracketed(one.low, one.high, places, signed=True)
    return TableCell(plain(one.mean, places, signed=True), ends, sure=sure)


def _costs(row: ComparisonRow) -> tuple[str, ...]:
    passes = ABSENT if row.teacher_passes is None else f"{row.teacher_passes:.2f}"
    seeds = ",".join(map(str, row.seeds))
    return seeds, f"{row.steps:,}", f"{row.tokens:,}", passes, count(row.parameters), count(row.flops)


def _generated(row: ComparisonRow) -> tuple[str, ...]:
    return (count(row.generated_tokens),)


def _zeros(row: ComparisonRow) -> tuple[str, ...]:
    return ABSENT if row.zeros is None else f"{row.zeros:.1%}", count(row.compressed_bytes)


# The tables of a comparison as blocks of lines, in the layout asked for; every form prints these.


@dataclass(frozen=True)
class Column:
    """One column.

    Args:
        heading: what stands above it.
        part: what of the score it holds, below a heading shared with the column before; empty where it stands alone.
    """

    heading: str
    part: str = ""


@dataclass(frozen=True)
class Block:
    """Lines under one title.

    Args:
        title: what they are.
        columns: beside the name of the line.
        rows: groups of lines, to be set apart from each other.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[TableRow, ...], ...]


def blocks(sheet: TableView, layout: str = "") -> list[Block]:
    """Arrange the scores and their differences.

    Args:
        sheet: the strings.
        layout: one of ``LAYOUTS``, or empty for everything there is.
    """
    columns = tuple(Column(sheet.heading(info)) for info in sheet.scores)
    delta = f"Δ to {sheet.called(sheet.baseline)}"
    changes = {line.label: line for line in sheet.differences}
    if layout == "two-rows":
        rows = [
            tuple(part for line in group for part in _with_difference(line, changes, delta))
            for group in (sheet.references, sheet.means)
        ]
        return [Block("Scores", columns, _filled(rows))]
    if layout == "value-delta":
        pairs = tuple(Column(one.heading, part) for one in columns for part in ("value", delta))
        nothing = TableCell("")
        beside = [
            tuple(
                replace(
                    line,
                    cells=tuple(
                        cell
                        for index, value in enumerate(line.cells)
                        for cell in (
                            value,
                            _ends(changes[line.label].cells[index]) if line.label in changes else nothing,
                        )
                    ),
                )
                for line in group
            )
            for group in (sheet.references, sheet.means)
        ]
        return [Block("Scores", pairs, _filled(beside))]
    found = [Block("Scores", columns, _filled([sheet.references, sheet.means]))]
    if sheet.differences:
        title = f"Difference to {sheet.called(sheet.baseline)}, paired"
        found.append(Block(title, columns, (sheet.differences,)))
    if not layout and sheet.before:
        found.append(Block(BEFORE_TITLE, columns, (sheet.before,)))
    if not layout and sheet.closed:
        found.append(Block(CLOSED_TITLE, columns, (sheet.closed,)))
    return found


def _with_difference(line: TableRow, changes: Mapping[str, TableRow], delta: str) -> Iterable[TableRow]:
    yield line
    if line.label in changes:
        yield TableRow(delta, changes[line.label].cells, below=True)


def _ends(cell: TableCell) -> TableCell:
    """Leave out the mean of a difference, which the values beside it show, where there is an interval."""
    return replace(cell, mean="") if cell.interval else cell


def _filled(groups: Iterable[tuple[TableRow, ...]]) -> tuple[tuple[TableRow, ...], ...]:
    return tuple(group for group in groups if group)


def caption(comparison: Comparison) -> str:
    """Return what a table says of itself: models, rows, steps, seeds, protocol, and how to read it.

    Args:
        comparison: what the table shows.
    """
    about = subject(comparison)
    said = "; ".join(circumstances(comparison))
    units = dict.fromkeys(one.unit for row in comparison.rows for one in row.scores.values() if one.unit != "none")
    over = f" over {' or '.join(units)}" if units else ""
    legend = f"± and [ ] are 95 % intervals{over}; bold is best, underlined does not differ significantly from it"
    paired = "; differences are paired, and * marks p < 0.05 after Holm's correction"
    sentences = [f"{about}: {said}" if about else said, legend + paired * (len(comparison.rows) > 1)]
    return " ".join(f"{one[:1].upper() + one[1:] if one == legend else one}." for one in sentences if one)
