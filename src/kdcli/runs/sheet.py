"""What every form of a table prints: the same strings, rounded once."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kdcli.digits import decimals, with_half
from kdcli.runs.records import Comparison, ComparisonRow, ScoreInfo
from kdcli.statistics import LEVEL, Estimate

ARROWS = {"higher": "↑", "lower": "↓", "neither": ""}
ABSENT = "–"
SURE = "*"
COSTS = ("seeds", "steps", "response tokens", "teacher passes", "parameters", "FLOPs")
GENERATED = "generated tokens"


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
        means: mean ± half the 95 % interval.
        differences: paired difference to the baseline with its 95 % interval, without the baseline's line.
        costs: label and one string per name in ``cost_names``.
        baseline: as it came.
    """

    scores: tuple[ScoreInfo, ...]
    means: tuple[Line, ...]
    differences: tuple[Line, ...]
    costs: tuple[tuple[str, tuple[str, ...]], ...]
    baseline: str
    cost_names: tuple[str, ...] = COSTS


def make_sheet(comparison: Comparison, digits: int | None = None) -> Sheet:
    """Round a comparison to what its intervals support.

    Args:
        comparison: the numbers.
        digits: decimals of every number; by default those that show two digits of the median interval.
    """
    rows = comparison.rows
    generates = any(row.generated_tokens for row in rows)
    places = {info.name: digits if digits is not None else _places(rows, info.name) for info in comparison.scores}
    return Sheet(
        scores=comparison.scores,
        means=tuple(Line(row.label, tuple(_mean(row, name, places[name]) for name in places)) for row in rows),
        differences=tuple(
            Line(row.label, tuple(_difference(row.differences.get(name), places[name]) for name in places))
            for row in rows
            if row.label != comparison.baseline
        ),
        costs=tuple((row.label, _costs(row) + _generated(row) * generates) for row in rows),
        baseline=comparison.baseline,
        cost_names=COSTS + (GENERATED,) * generates,
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


def _mean(row: ComparisonRow, name: str, places: int) -> Entry:
    one = row.scores.get(name)
    if one is None or one.mean != one.mean:
        return Entry(ABSENT)
    mean, _, half = with_half(one.mean, one.half_width, places).partition(" ")
    return Entry(mean, half, best=name in row.best, tied=name in row.tied)


def _difference(one: Estimate | None, places: int) -> Entry:
    if one is None or one.mean != one.mean:
        return Entry(ABSENT)
    sure = one.p_value is not None and one.p_value < LEVEL
    mean = with_half(one.mean, None, places, signed=True)
    if one.low is None or one.high is None:
        return Entry(mean, sure=sure)
    ends = (with_half(end, None, places, signed=True) for end in (one.low, one.high))
    return Entry(mean, f"[{', '.join(ends)}]", sure=sure)


def _costs(row: ComparisonRow) -> tuple[str, ...]:
    passes = ABSENT if row.teacher_passes is None else f"{row.teacher_passes:.2f}"
    seeds = ",".join(map(str, row.seeds))
    return seeds, f"{row.steps:,}", f"{row.tokens:,}", passes, count(row.parameters), count(row.flops)


def _generated(row: ComparisonRow) -> tuple[str, ...]:
    return (count(row.generated_tokens),)
