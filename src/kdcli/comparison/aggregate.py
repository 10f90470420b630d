"""Aggregates long tables into the rows of a comparison: means, intervals, paired tests, costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kdcli import statistics
from kdcli.comparison.records import ComparisonRow, ReferenceRow
from kdcli.comparison.tables_store import LongFormat
from kdcli.distill.records import BEFORE, MODEL, TEACHER, RunRecord
from kdcli.evaluation.records import EvalRecord, ScoreInfo
from kdcli.metrics.score import Score
from kdcli.statistics import Detectable, Estimate, VarianceShares

Machine = Mapping[tuple[str, int], tuple[float, int]]
Seeds = Mapping[Any, Score]
"""Training seed -> score; of a model that was measured once, under None."""

Differences = dict[str, Estimate | None]


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


@dataclass(frozen=True)
class ScoreTest:
    """Everything a comparison says about one score.

    Args:
        scores: label -> mean with interval.
        differences: label -> difference to the baseline, about the objectives if there are several seeds.
        models: label -> the same about these trained models.
        best: the label with the best mean; None where neither direction is better, or of one line.
        tied: labels that do not differ significantly from it, itself included.
        detectable: smallest true difference to the baseline that this design finds, None where it is unknown.
        variance: where the variance of a difference to the baseline comes from.
        references: role and label of a reference model -> its value with interval.
        before: label -> difference to the student before training, as ``differences``; a family of its own.
        closed: label -> share of the gap between the student before training and the teacher that was closed.
        outside: label of a model trained elsewhere -> its difference to the baseline, to the student before training,
            and the share of the gap that it closes.
    """

    scores: dict[str, Estimate]
    differences: Differences
    models: Differences
    best: str | None
    tied: tuple[str, ...]
    detectable: Detectable | None
    variance: VarianceShares | None
    references: dict[tuple[str, str], Estimate] = field(default_factory=dict)
    before: Differences = field(default_factory=dict)
    closed: Differences = field(default_factory=dict)
    outside: dict[str, tuple[Estimate | None, Estimate | None, Estimate | None]] = field(default_factory=dict)

    def is_best(self, label: str) -> bool:
        """Whether no other label has a better mean; several may have the same."""
        return self.best is not None and label in self.scores and self.scores[label].mean == self.scores[self.best].mean


def test_of_score(tidy: LongFormat, info: ScoreInfo) -> ScoreTest:
    """Judge one score over all lines; p-values are adjusted by Holm's rule over its contenders."""
    lines = _Lines(tidy, info.name)
    baseline = tidy.about.baseline
    models = {label: lines.models(label, baseline) for label in lines.labels}
    raw = {label: lines.difference(label, baseline, known=models[label]) for label in lines.labels}
    scores = {label: lines.mean(label) for label in lines.labels if lines.of(label)}
    best = _best(scores, info)
    to_best = raw if best == baseline else {label: lines.difference(label, best) for label in scores} if best else {}
    p_values = {label: one.p_value for label, one in to_best.items() if one is not None and label != best}
    unknown = {label: None for label in scores if best and label != best and label not in p_values}
    tests = sum(one is not None and one.p_value is not None for one in raw.values())
    return ScoreTest(
        scores=scores,
        differences=_adjusted(raw),
        models=_adjusted(models),
        best=best,
        tied=statistics.tied_for_best({**p_values, **unknown}, best) if best else (),
        detectable=lines.detectable(baseline, tests),
        variance=lines.variance(baseline, of_texts=info.input_kind == "texts"),
        references={line: lines.reference_mean(line) for line in lines.references},
        before=_adjusted({label: lines.against_start(label) for label in lines.labels}),
        closed={label: lines.closed(label, info) for label in lines.labels},
        outside=lines.outside(baseline, info),
    )


def make_rows(tidy: LongFormat, verdicts: Mapping[str, ScoreTest], machine: Machine) -> tuple[ComparisonRow, ...]:
    """Return one line per label, in the order of the tables.

    Args:
        tidy: the tables.
        verdicts: score -> what was found.
        machine: label and seed -> seconds and peak bytes; runs that are not in it count 0.
    """
    return tuple(_row(label, list(runs.values()), verdicts, machine) for label, runs in tidy.runs.items())


def make_references(tidy: LongFormat, verdicts: Mapping[str, ScoreTest]) -> tuple[ReferenceRow, ...]:
    """Return one line per reference model: the student before training, the teacher, then others.

    Args:
        tidy: the tables.
        verdicts: score -> what was found.
    """
    order = {role: place for place, role in enumerate((BEFORE, TEACHER, MODEL))}
    found = sorted(tidy.references.items(), key=lambda line: order.get(line[0][0], len(order)))
    return tuple(_reference(line, list(seeds.items()), verdicts) for line, seeds in found)


def pareto(rows: Sequence[ComparisonRow], infos: Sequence[ScoreInfo]) -> dict[str, dict[str, tuple[str, ...]]]:
    """Return score -> cost -> labels on the front of quality against that cost.

    A cost that is unknown for a line, or the same for all, is left out. Seconds are no such cost: on a machine that
    others use they differ by more than most objectives do.
    """
    fronts: dict[str, dict[str, tuple[str, ...]]] = {}
    for info in infos:
        for cost in ("parameters", "flops"):
            points = {row.label: (row.scores[info.name].mean, getattr(row, cost)) for row in rows if row.scores}
            known = {label: (quality, float(spent)) for label, (quality, spent) in points.items() if spent}
            if info.better == "neither" or len(known) < len(rows) or len({spent for _, spent in known.values()}) < 2:
                continue
            front = statistics.pareto_front(known, higher_is_better=info.better == "higher")
            fronts.setdefault(info.name, {})[cost] = front
    return fronts


class _Lines:
    """One score of every line."""

    def __init__(self, tidy: LongFormat, name: str) -> None:
        self.labels, self._starts = list(tidy.runs), tidy.about.starts
        self._scores = {
            label: {seed: score for seed in runs if (score := tidy.score(label, seed, name)) is not None}
            for label, runs in tidy.runs.items()
        }
        found = {
            line: {seed: score for seed in seeds if (score := tidy.score(line[1], seed, name, line[0])) is not None}
            for line, seeds in tidy.references.items()
        }
        self.references = {line: seeds for line, seeds in found.items() if seeds}

    def reference_mean(self, line: tuple[str, str]) -> Estimate:
        """Return a reference model's value: over examples, and over starts where there are several."""
        return _mean(list(self.references[line].values()))

    def against_start(self, label: str) -> Estimate | None:
        """Return a line's difference to its student before training, paired by example, and by seed if it has any."""
        ours, theirs = self._paired_seeds(self._scores[label], self._start(label))
        return _difference(ours, theirs) if ours else None

    def closed(self, label: str, info: ScoreInfo) -> Estimate | None:
        """Return the share of the gap that a line closed, where the teacher is clearly better than the start."""
        return self._closed(self._scores[label], self._start(label), info)

    def outside(
        self, baseline: str, info: ScoreInfo
    ) -> dict[str, tuple[Estimate | None, Estimate | None, Estimate | None]]:
        """Return what is known of models trained elsewhere; p-values are adjusted for their number."""
        models = {label: found for (role, label), found in self.references.items() if role == MODEL}
        to_baseline, to_start = {}, {}
        for label, found in models.items():
            theirs, ours = self._paired_seeds(self._scores[baseline], found)
            to_baseline[label] = _difference(ours, theirs) if ours else None
            ours, theirs = self._paired_seeds(found, self._start(None))
            to_start[label] = _difference(ours, theirs) if ours else None
        adjusted = _adjusted(to_baseline), _adjusted(to_start)
        shares = {label: self._closed(found, self._start(None), info) for label, found in models.items()}
        return {label: (adjusted[0][label], adjusted[1][label], shares[label]) for label in models}

    def _closed(self, found: Seeds, start: Seeds, info: ScoreInfo) -> Estimate | None:
        target = self._of(TEACHER)
        if info.better == "neither" or not start or not target:
            return None
        ours, first = self._paired_seeds(found, start)
        if not ours:
            return None
        last = list(target.values())
        ahead = sum(one.value for one in first) / len(first) - last[0].value
        if (ahead > 0) != (info.better == "lower"):
            return None
        return statistics.share_of_gap(ours, first, last)

    def _start(self, label: str | None) -> Seeds:
        """Return the student before training that a line began with; of a model trained elsewhere, the only one."""
        if not self._starts:
            return self._of(BEFORE)
        return self.references.get((BEFORE, self._starts.get(label or "", "")), {})

    def _of(self, role: str) -> Seeds:
        return next((found for line, found in self.references.items() if line[0] == role), {})

    @staticmethod
    def _paired_seeds(ours: Seeds, theirs: Seeds) -> tuple[list[Score], list[Score]]:
        """Pair by seed; a model that was measured once is paired with every seed of the other."""
        if None in theirs or None in ours:
            seeds = list(ours) if None in theirs else list(theirs)
        else:
            seeds = [seed for seed in ours if seed in theirs]
        return [_at(ours, seed) for seed in seeds], [_at(theirs, seed) for seed in seeds]

    def of(self, label: str) -> list[Score]:
        return list(self._scores[label].values())

    def mean(self, label: str) -> Estimate:
        return _mean(self.of(label))

    def difference(self, label: str, other: str, known: Estimate | None = None) -> Estimate | None:
        """Return the difference that decides: about the objectives, or with one shared seed about the models.

        ``known`` is the latter where it was computed before.
        """
        ours, theirs = self._shared(label, other)
        if label == other or not ours:
            return None
        if len(ours) > 1:
            return statistics.difference_over_both(ours, theirs)
        return known or statistics.difference_over_examples(ours, theirs, interval=False)

    def models(self, label: str, other: str) -> Estimate | None:
        """Return the difference of these trained models."""
        ours, theirs = self._shared(label, other)
        return None if label == other or not ours else statistics.difference_over_examples(ours, theirs)

    def detectable(self, baseline: str, tests: int) -> Detectable | None:
        pairs = [self._shared(label, baseline) for label in self.labels if label != baseline]
        return statistics.smallest_detectable_difference(pairs, tests)

    def variance(self, baseline: str, *, of_texts: bool) -> VarianceShares | None:
        pairs = [self._shared(label, baseline) for label in self.labels if label != baseline]
        most = max((len(ours) for ours, _ in pairs), default=0)
        tables, noises = [], []
        for ours, theirs in pairs:
            table = statistics.difference_table(ours, theirs) if len(ours) == most > 0 else None
            if table is not None:
                tables.append(table)
                noises.append(_noise(ours, theirs) if of_texts else 0.0)
        return statistics.variance_shares(tables, noises)

    def _shared(self, label: str, other: str) -> tuple[list[Score], list[Score]]:
        ours, theirs = self._scores[label], self._scores[other]
        seeds = [seed for seed in ours if seed in theirs]
        return [ours[seed] for seed in seeds], [theirs[seed] for seed in seeds]


def _at(scores: Seeds, seed: int | None) -> Score:
    return scores[seed] if seed in scores else scores[None]


def _mean(scores: Sequence[Score]) -> Estimate:
    return statistics.over_both(scores) if len(scores) > 1 else statistics.over_examples(scores[0])


def _difference(ours: Sequence[Score], theirs: Sequence[Score]) -> Estimate:
    """Return a paired difference: about the objective with several seeds, about the trained model with one."""
    if len(ours) > 1:
        return statistics.difference_over_both(ours, theirs)
    return statistics.difference_over_examples(ours, theirs)


def _reference(
    line: tuple[str, str], runs: Sequence[tuple[int | None, Mapping[str, Any]]], verdicts: Mapping[str, ScoreTest]
) -> ReferenceRow:
    role, label = line
    outside = {name: one.outside[label] for name, one in verdicts.items() if role == MODEL and label in one.outside}
    return ReferenceRow(
        role=role,
        label=label,
        scores={name: one.references[line] for name, one in verdicts.items() if line in one.references},
        parameters=_largest([run for _, run in runs], "parameters"),
        seeds=tuple(seed for seed, _ in runs if seed is not None),
        differences={name: found[0] for name, found in outside.items()},
        before={name: found[1] for name, found in outside.items()},
        closed={name: found[2] for name, found in outside.items()},
    )


def _noise(ours: Sequence[Score], theirs: Sequence[Score]) -> float | None:
    sides = [statistics.sampling_noise(side, [score.answers for score in side]) for side in (ours, theirs)]
    known = [side for side in sides if side is not None]
    return sum(known) if len(known) == 2 else None


def _best(scores: Mapping[str, Estimate], info: ScoreInfo) -> str | None:
    if info.better == "neither" or len(scores) < 2:
        return None
    sign = 1.0 if info.better == "higher" else -1.0
    return max(scores, key=lambda label: sign * scores[label].mean)


def _adjusted(estimates: Differences) -> Differences:
    values = statistics.holm([None if one is None else one.p_value for one in estimates.values()])
    pairs = zip(estimates.items(), values, strict=True)
    return {label: None if one is None else replace(one, p_value=value) for (label, one), value in pairs}


def _row(
    label: str, runs: Sequence[Mapping[str, Any]], verdicts: Mapping[str, ScoreTest], machine: Machine
) -> ComparisonRow:
    spent = [machine.get((label, run["seed"]), (0.0, 0)) for run in runs]
    return ComparisonRow(
        label=label,
        seeds=tuple(run["seed"] for run in runs),
        scores={name: one.scores[label] for name, one in verdicts.items() if label in one.scores},
        differences={name: one.differences.get(label) for name, one in verdicts.items()},
        steps=max(run["steps"] for run in runs),
        tokens=max(run["tokens"] for run in runs),
        seconds=sum(seconds for seconds, _ in spent) / len(runs),
        peak_bytes=max(peak for _, peak in spent),
        seconds_range=(min(seconds for seconds, _ in spent), max(seconds for seconds, _ in spent)),
        models={name: one.models.get(label) for name, one in verdicts.items()},
        best=tuple(name for name, one in verdicts.items() if one.is_best(label)),
        tied=tuple(name for name, one in verdicts.items() if label in one.tied),
        student_tokens=_largest(runs, "student_tokens"),
        teacher_tokens=_largest(runs, "teacher_tokens"),
        parameters=_largest(runs, "parameters"),
        teacher_parameters=_largest(runs, "teacher_parameters"),
        flops=_largest(runs, "flops"),
        generated_tokens=max((run.get("generated_tokens") or 0 for run in runs), default=0),
        before={name: one.before.get(label) for name, one in verdicts.items()},
        closed={name: one.closed.get(label) for name, one in verdicts.items()},
        zeros=_largest(runs, "zeros"),
        compressed_bytes=_largest(runs, "compressed_bytes"),
    )


def _largest(runs: Sequence[Mapping[str, Any]], name: str) -> Any:
    values: list[Any] = [run.get(name) for run in runs]
    return None if None in values else max(values)
