"""Tuning: each variant's setting is chosen on development rows before the test rows are read."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from kdcli.comparison.records import Failure
from kdcli.config.sweep import format_choice
from kdcli.errors import NumericsError
from kdcli.metrics.titles import title
from kdcli.storage import stored
from kdcli.storage.digests import check_named, remove_file, replace_file
from kdcli.study.cells import Cell, TunedBy
from kdcli.study.scheduler import Finished, Outcome
from kdcli.text import markdown_cell

FILE, TABLE = "tuning.json", "tuning.md"
DIVERGED = NumericsError.exit_code


@dataclass(frozen=True)
class Trial:
    """One value that one contender tried.

    Args:
        label: the contender.
        tried: the value in words, such as ``lr=0.0003``.
        scores: development score of each seed; None where the run failed.
        mean: over the seeds; None if any of them failed.
        chosen: whether this value won.
    """

    label: str
    tried: str
    scores: tuple[float | None, ...]
    mean: float | None
    chosen: bool


@dataclass(frozen=True)
class Tuning:
    """What tuning tried and chose.

    Args:
        score: the score that chose.
        higher: whether more is better.
        rows: development rows.
        tried: values that every contender tried.
        trials: every contender's values, in the order given.
        seeds: training seeds that chose.
        reported: training seeds of the table; empty for a study of a version that had no others.
    """

    score: str
    higher: bool
    rows: int
    tried: int
    trials: tuple[Trial, ...]
    seeds: tuple[int, ...] = ()
    reported: tuple[int, ...] = ()

    @property
    def chosen(self) -> dict[str, str]:
        """Label -> the value that won; contenders of which nothing finished are left out."""
        return {trial.label: trial.tried for trial in self.trials if trial.chosen}

    def sentences(self) -> list[str]:
        """Say which values won, for the notes under the table."""
        won = "; ".join(f"{label}: {value}" for label, value in self.chosen.items())
        arrow = "higher" if self.higher else "lower"
        said = [
            f"tuned on {self.rows:,} development rows by {title(self.score)} ({arrow} is better), {self.tried} values "
            f"tried for every objective, the mean over seeds {_listed(self.seeds)} decides; chosen: {won}; the test "
            "rows were read for these only"
        ]
        both = [seed for seed in self.reported if seed in self.seeds]
        if both:
            said.append(
                f"seeds {_listed(both)} chose the values and are reported: luck that made a value win is in its mean, "
                "which is too good; --tune-seeds with other seeds avoids it"
            )
        return said


def choose(cells: Sequence[Cell], outcome: Outcome[Finished], by: TunedBy, reported: Sequence[int]) -> Tuning:
    """Choose each contender's value: the best mean development score over seeds, the first of equal ones.

    Args:
        cells: every trial.
        outcome: their records.
        by: the score.
        reported: training seeds of the table.
    """
    scores: dict[str, dict[str, list[float | None]]] = {}
    rows = 0
    for index, cell in enumerate(cells):
        found = outcome.finished.get(index)
        rows = found[1].examples if found else rows
        value = found[1].estimates[by.score].mean if found else None
        usable = value if value is not None and math.isfinite(value) else None
        scores.setdefault(cell.label, {}).setdefault(format_choice(cell.tried), []).append(usable)
    trials: list[Trial] = []
    for label, tried in scores.items():
        means = {value: _mean(found) for value, found in tried.items()}
        winner = _best(means, higher=by.higher)
        trials += [Trial(label, value, tuple(tried[value]), means[value], value == winner) for value in tried]
    tried, seeds = len({format_choice(cell.tried) for cell in cells}), tuple(dict.fromkeys(cell.seed for cell in cells))
    return Tuning(by.score, by.higher, rows, tried, tuple(trials), seeds, tuple(reported))


def winners(cells: Sequence[Cell], tuning: Tuning) -> list[Cell]:
    """Return one cell of each value that won."""
    won = {cell.label: cell for cell in cells if tuning.chosen.get(cell.label) == format_choice(cell.tried)}
    return list(won.values())


def real_failures(failed: Sequence[Failure], tuning: Tuning) -> list[Failure]:
    """Return the failures that tuning does not account for: a value that diverges has merely lost."""
    return [one for one in failed if one.exit_code != DIVERGED or one.loss not in tuning.chosen]


def write_tuning(folder: Path, tuning: Tuning) -> None:
    """Write ``tuning.json`` and ``tuning.md``."""
    document = json.dumps(asdict(tuning), indent=1, ensure_ascii=False) + "\n"
    for name, text in ((FILE, document), (TABLE, "\n".join(tuning_lines(tuning)) + "\n")):
        replace_file(folder / name, text)


def read_tuning(folder: Path) -> Tuning | None:
    """Return what a study's tuning tried and chose, None if it was not tuned.

    Raises:
        IntegrityError: the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    fix = "run kd compare -o again"
    check_named(folder, (FILE,), fix)
    return stored.read_record(path, Tuning, fix=fix)


def forget_tuning(folder: Path) -> None:
    """Remove what an earlier, tuned comparison in this folder left."""
    for name in (FILE, TABLE):
        remove_file(folder / name)


def tuning_lines(tuning: Tuning) -> list[str]:
    """Return the table of every value tried, as Markdown."""
    arrow = "↑" if tuning.higher else "↓"
    lines = [f"| objective | tried | {markdown_cell(title(tuning.score))} {arrow} on development rows | chosen |"]
    lines.append("| --- | --- | ---: | --- |")
    for trial in tuning.trials:
        mean = "failed" if trial.mean is None else f"{trial.mean:.6g}"
        cells = [markdown_cell(trial.label), markdown_cell(trial.tried), mean, "yes" if trial.chosen else ""]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _listed(seeds: Sequence[int]) -> str:
    return ",".join(map(str, seeds))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if len(known) == len(values) else None


def _best(means: dict[str, float | None], *, higher: bool) -> str | None:
    known = [(value, mean) for value, mean in means.items() if mean is not None]
    if not known:
        return None
    return (max if higher else min)(known, key=lambda pair: pair[1])[0]
