"""From evaluated runs to the lines of a table: means, intervals, paired differences, costs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kdcli import statistics
from kdcli.metrics.score import Score
from kdcli.runs.records import ComparisonRow, EvalRecord, RunRecord, ScoreInfo
from kdcli.runs.results import read_scores
from kdcli.statistics import Estimate


@dataclass(frozen=True)
class Group:
    """The runs behind one line.

    Args:
        label: what the line is called.
        runs: seed -> run and its evaluation.
    """

    label: str
    runs: dict[int, tuple[RunRecord, EvalRecord]]

    def values(self, score: str) -> dict[int, float]:
        """Return seed -> value of a score."""
        return {seed: found.estimates[score].mean for seed, (_, found) in self.runs.items() if score in found.estimates}


class Samples:
    """Per-example statistics of evaluations, read once and only where they are needed."""

    def __init__(self) -> None:
        self._read: dict[Path, dict[str, Score]] = {}

    def score(self, record: EvalRecord, name: str) -> Score | None:
        """Return one score of an evaluation, None if it was not written."""
        if record.folder is None:
            return None
        if record.folder not in self._read:
            self._read[record.folder] = read_scores(record.folder)
        return self._read[record.folder].get(name)


def make_rows(groups: Sequence[Group], baseline: str, infos: Sequence[ScoreInfo]) -> tuple[ComparisonRow, ...]:
    """Return one line per group, with differences to the baseline and p-values adjusted by Holm's rule.

    Several seeds: means, intervals and differences over seeds. One seed: the same over the held-out
    examples, which says nothing about another seed.
    """
    samples = Samples()
    base = next(group for group in groups if group.label == baseline)
    differences = {
        info.name: _adjusted(
            [None if group is base else difference(group, base, info.name, samples) for group in groups]
        )
        for info in infos
    }
    return tuple(
        _row(group, {info.name: differences[info.name][index] for info in infos}, infos)
        for index, group in enumerate(groups)
    )


def difference(group: Group, base: Group, score: str, samples: Samples) -> Estimate | None:
    """Return a paired difference: by seed where two or more are shared, else by example."""
    ours, theirs = group.values(score), base.values(score)
    shared = sorted(ours.keys() & theirs.keys())
    if len(shared) >= 2:
        return statistics.difference_over_seeds(ours, theirs)
    if not shared:
        return None
    mine = samples.score(group.runs[shared[0]][1], score)
    other = samples.score(base.runs[shared[0]][1], score)
    if mine is None or other is None:
        return None
    return statistics.difference_over_examples(mine, other)


def _adjusted(estimates: list[Estimate | None]) -> list[Estimate | None]:
    values = statistics.holm([None if one is None else one.p_value for one in estimates])
    return [None if one is None else replace(one, p_value=value) for one, value in zip(estimates, values, strict=True)]


def _row(group: Group, differences: dict[str, Estimate | None], infos: Sequence[ScoreInfo]) -> ComparisonRow:
    runs = [run for run, _ in group.runs.values()]
    return ComparisonRow(
        label=group.label,
        seeds=tuple(sorted(group.runs)),
        scores={info.name: _estimate(group, info.name) for info in infos if group.values(info.name)},
        differences=differences,
        steps=max(run.steps for run in runs),
        tokens=max(run.tokens for run in runs),
        seconds=sum(run.seconds for run in runs) / len(runs),
        peak_bytes=max(run.peak_bytes for run in runs),
    )


def _estimate(group: Group, score: str) -> Estimate:
    values = group.values(score)
    if len(values) > 1:
        return statistics.over_seeds(values)
    (seed,) = values
    return group.runs[seed][1].estimates[score]
