"""What every form of a table prints: the same strings, rounded once."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kdcli.digits import bracketed, decimals, interval, plain
from kdcli.runs.against_start import percent
from kdcli.runs.records import BEFORE, Comparison, ComparisonRow, ReferenceRow, ScoreInfo
from kdcli.statistics import LEVEL, Estimate

ARROWS = {"higher": "↑", "lower": "↓", "neither": ""}
ABSENT = "–"
SURE = "*"
COSTS = ("seeds", "steps", "response tokens", "teacher passes", "parameters", "FLOPs")
GENERATED = "generated tokens"
BEFORE_TITLE = "Difference to the student before training, paired"
CLOSED_TITLE = "Share of the gap from the student before training to the teacher that was closed"


@dataclass(frozen=True)
class Entry:
    """One cell.

    Args:
        mean: the number.
        interval: half its interval, or both ends of it; empty if there is none.
        best: whether no other line is better.
        tied: whether it cannot be told from the best.
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
class Line:
    """One objective's cells.

    Args:
        label: as it came, not yet made safe.
        cells: one per score.
    """

    label: str
    cells: tuple[Entry, ...]


@dataclass(frozen=True)
class Sheet:
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
    """

    scores: tuple[ScoreInfo, ...]
    means: tuple[Line, ...]
    differences: tuple[Line, ...]
    costs: tuple[tuple[str, tuple[str, ...]], ...]
    baseline: str
    cost_names: tuple[str, ...] = COSTS
    references: tuple[Line, ...] = ()
    before: tuple[Line, ...] = ()
    closed: tuple[Line, ...] = ()


def make_sheet(comparison: Comparison, digits: int | None = None) -> Sheet:
    """Round a comparison to what its intervals support.

    Args:
        comparison: the numbers.
        digits: decimals of every number; by default those that show two digits of the median interval.
    """
    rows, others = comparison.rows, comparison.references
    generates = any(row.generated_tokens for row in rows)
    places = {info.name: digits if digits is not None else _places(rows, info.name) for info in comparison.scores}

    def changes(lines: Iterable[ComparisonRow | ReferenceRow], field: str) -> tuple[Line, ...]:
        return tuple(
            Line(row.label, tuple(_difference(getattr(row, field).get(name), places[name]) for name in places))
            for row in lines
        )

    outside = [row for row in others if row.differences]
    start = any(row.role == BEFORE for row in others)
    closed = [row for row in (*outside, *rows) if any(row.closed.values())]
    return Sheet(
        scores=comparison.scores,
        means=tuple(Line(row.label, tuple(_mean(row, name, places[name]) for name in places)) for row in rows),
        differences=changes([*outside, *(row for row in rows if row.label != comparison.baseline)], "differences"),
        costs=(
            *((row.label, _size(row) + (ABSENT,) * generates) for row in others),
            *((row.label, _costs(row) + _generated(row) * generates) for row in rows),
        ),
        baseline=comparison.baseline,
        cost_names=COSTS + (GENERATED,) * generates,
        references=tuple(Line(row.label, tuple(_mean(row, name, places[name]) for name in places)) for row in others),
        before=changes([*outside, *rows], "before") if start else (),
        closed=tuple(Line(row.label, tuple(_share(row.closed.get(name)) for name in places)) for row in closed),
    )


def count(value: int | float | None) -> str:
    """Return a count: whole numbers in full, others, such as FLOPs, in three digits.

    >>> count(469_875_223_680.0), count(1234), count(None)
    ('4.7e+11', '1,234', '–')
    """
    if value is None:
        return ABSENT
    return f"{value:.3g}" if isinstance(value, float) else f"{value:,}"


def _places(rows: Sequence[ComparisonRow], name: str) -> int:
    means = [row.scores[name] for row in rows if name in row.scores]
    changes = [change for row in rows if (change := row.differences.get(name)) is not None]
    return decimals(_values(means), [one.half_width for one in [*means, *changes]])


def _values(estimates: Iterable[Estimate]) -> list[float]:
    return [one.mean for one in estimates]


def _mean(row: ComparisonRow | ReferenceRow, name: str, places: int) -> Entry:
    one = row.scores.get(name)
    if one is None or one.mean != one.mean:
        return Entry(ABSENT)
    mean, shown = plain(one.mean, places), interval(one.mean, one.low, one.high, places)
    if isinstance(row, ReferenceRow):
        return Entry(mean, shown)
    return Entry(mean, shown, best=name in row.best, tied=name in row.tied)


def _share(one: Estimate | None) -> Entry:
    if one is None:
        return Entry(ABSENT)
    mean, _, interval = percent(one).partition(" [")
    return Entry(mean, f"[{interval}" if interval else "")


def _size(row: ReferenceRow) -> tuple[str, ...]:
    """Return the costs of a model that was not trained here: its size alone."""
    return tuple(count(row.parameters) if name == "parameters" else ABSENT for name in COSTS)


def _difference(one: Estimate | None, places: int) -> Entry:
    if one is None or one.mean != one.mean:
        return Entry(ABSENT)
    sure = one.p_value is not None and one.p_value < LEVEL
    ends = bracketed(one.low, one.high, places, signed=True)
    return Entry(plain(one.mean, places, signed=True), ends, sure=sure)


def _costs(row: ComparisonRow) -> tuple[str, ...]:
    passes = ABSENT if row.teacher_passes is None else f"{row.teacher_passes:.2f}"
    seeds = ",".join(map(str, row.seeds))
    return seeds, f"{row.steps:,}", f"{row.tokens:,}", passes, count(row.parameters), count(row.flops)


def _generated(row: ComparisonRow) -> tuple[str, ...]:
    return (count(row.generated_tokens),)
