"""Turns finished cells into a comparison: long tables first, everything else from those."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

from kdcli.comparison import conclusions
from kdcli.comparison.against_start import against_start
from kdcli.comparison.aggregate import Group, Machine, make_references, make_rows, pareto, test_of_score
from kdcli.comparison.cost import costs_of, machine_table, read_machine
from kdcli.comparison.records import COSTS, Comparison, Failure
from kdcli.comparison.tables_store import (
    Cell,
    ComparisonMeta,
    LongFormat,
    make_tidy,
    read_tidy,
    write_tidy,
)
from kdcli.distill.records import Reference, RunRecord
from kdcli.evaluation.records import EvalRecord, ScoreInfo
from kdcli.report.page import NAME, write_report
from kdcli.report.tables import write_tables
from kdcli.report.training_curves import draw_curves
from kdcli.storage import atomic, digests
from kdcli.storage.digests import write_digests
from kdcli.study import stored_comparison
from kdcli.study.setup import completed, setup_of_runs


def conclude(
    groups: Sequence[Group], about: ComparisonMeta, folder: Path | None, references: Sequence[Reference] = ()
) -> Comparison:
    """Put finished runs into one comparison, and write it.

    With a folder, ``results.parquet`` and ``samples.parquet`` are written first and the comparison
    is computed from what is read back: the tables can be made again from these two files.

    Args:
        groups: the runs behind each line.
        about: what is needed beside the numbers.
        folder: where to write, which is there; None writes nothing.
        references: models that were not trained here, measured on the same rows.
    """
    infos = shared_scores([found for group in groups for _, found in group.runs.values()])
    about = replace(about, setup=setup_of_runs(groups))
    lines = [(group.label, *one) for group in groups for _, one in sorted(group.runs.items())]
    costs = costs_of([run for _, run, _ in lines])
    cells = [Cell(label, run, found, cost) for (label, run, found), cost in zip(lines, costs, strict=True)]
    tidy = make_tidy(cells, infos, about, references)
    machine = {(cell.label, cell.run.seed): (cell.run.seconds, cell.run.peak_bytes) for cell in cells}
    if folder is None:
        return _with_next(compare_tidy(tidy, machine, None), about)
    digests.remove_digests(folder)
    write_tidy(folder, tidy)
    atomic.write_file(folder / COSTS, machine_table([(cell.label, cell.run, cell.cost) for cell in cells]))
    comparison = _computed(folder)
    write_tables(folder, comparison)
    stored_comparison.write(folder, comparison)
    digests.write_digests(folder)
    return _with_next(comparison, about)


def _with_next(comparison: Comparison, about: ComparisonMeta) -> Comparison:
    """Say what to type next, in place of an example: it names folders, so no table holds it."""
    command = conclusions.SuggestedCommand(about.command, about.seeds)
    if not command.command:
        return comparison
    after = tuple(command.sentences(comparison.rows))
    kept = (note for note in comparison.notes if note not in comparison.suggestions)
    return replace(comparison, notes=(*kept, *after), suggestions=after, suggested=command.line())


def read_comparison(folder: Path, baseline: str | None = None) -> Comparison:
    """Compute a comparison again from the tables in its folder.

    Args:
        folder: what ``kd compare`` wrote.
        baseline: label that differences are taken to; by default the one it was made with.

    Raises:
        InputError: it holds no comparison.
        UsageError: no line has the label.
        IntegrityError: a table is not what it was when the comparison was finished.
    """
    return stored_comparison.read(folder, baseline) or _computed(folder, baseline)


def _computed(folder: Path, baseline: str | None = None) -> Comparison:
    tidy = read_tidy(folder)
    tidy = tidy.with_baseline(baseline) if baseline is not None else tidy
    return compare_tidy(tidy, read_machine(folder / COSTS, list(tidy.runs)), folder)


def compare_tidy(tidy: LongFormat, machine: Machine, folder: Path | None) -> Comparison:
    """Compute a comparison from tidy tables.

    Args:
        tidy: the tables.
        machine: label and seed -> seconds and peak bytes.
        folder: where the tables lie.
    """
    infos, about = tidy.infos, tidy.about
    verdicts = {info.name: test_of_score(tidy, info) for info in infos}
    rows = make_rows(tidy, verdicts, machine)
    detectable = {name: one.detectable for name, one in verdicts.items()}
    variance = {name: one.variance for name, one in verdicts.items() if one.variance is not None}
    fronts = pareto(rows, infos)
    command = conclusions.SuggestedCommand(about.command, about.seeds)
    after = tuple(command.sentences(rows))
    references = make_references(tidy, verdicts)
    start = against_start(rows, references, infos, about.rates)
    said = [
        *about.remarks,
        *conclusions.conclusions(
            rows, about.baseline, infos, detectable, variance, fronts, one_rate=about.one_rate, start=start
        ),
        *tidy.notes,
        *after,
    ]
    return Comparison(
        about.baseline, rows, infos, tuple(said), folder, about.failed,
        detectable=detectable, variance=variance, pareto=fronts, references=references, suggestions=after,
        suggested=command.line(), setup=completed(about, tidy, folder),
    )  # fmt: skip


def shared_scores(records: Sequence[EvalRecord]) -> tuple[ScoreInfo, ...]:
    """Return the scores that every evaluation has, in the first one's order."""
    return tuple(info for info in records[0].infos if all(info.name in record.estimates for record in records))


# Training curves, the report, and digests of all files of the study.


def publish(
    folder: Path, comparison: Comparison, groups: Sequence[Group], references: Sequence[Reference] = ()
) -> None:
    """Write curves and report, then seal the folder.

    Args:
        folder: the study; its tables are written.
        comparison: the tables.
        groups: the runs behind each line.
        references: the reference models' evaluations.
    """
    draw_curves(folder, groups)
    write_report(folder / NAME, comparison, groups, references)
    write_digests(folder)


# From evaluated runs to their comparison, its files and its pictures.


Finished: TypeAlias = tuple[RunRecord, EvalRecord]


def tabulate(
    groups: Mapping[str, dict[int, Finished]],
    baseline: str,
    failed: tuple[Failure, ...],
    output: Path | None,
    remarks: tuple[str, ...],
    after: conclusions.SuggestedCommand,
    references: Sequence[Reference] = (),
    rates: Mapping[str, tuple[float, tuple[float, ...]]] | None = None,
    *,
    tuned: bool = False,
    starts: Mapping[str, str] = MappingProxyType({}),
) -> Comparison:
    """Return the comparison, and write its files.

    Args:
        groups: label -> seed -> run and evaluation, in the order of the lines.
        baseline: label that differences are taken to.
        failed: cells that could not be finished.
        output: folder to write into; None writes nothing.
        remarks: notes that come first.
        after: what to type next.
        references: models that were not trained here, measured on the same rows.
        rates: label -> its learning rate, and all that were tried for its objective; by default those of the runs.
        tuned: whether each line chose its own value of a setting.
        starts: label -> label of the student before training that its runs began with, where there are several.
    """
    made = [Group(label, runs) for label, runs in groups.items()]
    rates = rates or rates_of(groups)
    about = ComparisonMeta(baseline, remarks, after.command, after.seeds, failed, rates, tuned, starts=starts)
    comparison = conclude(made, about, output, references)
    if output is not None:
        publish(output, comparison, made, references)
    return comparison


def rates_of(groups: Mapping[str, Mapping[int, Finished]]) -> dict[str, tuple[float, tuple[float, ...]]]:
    """Return label -> the learning rate of its runs, and all rates among the runs of the same objective."""
    used = {label: [run for run, _ in runs.values()] for label, runs in groups.items()}
    tried: dict[str, set[float]] = {}
    for runs in used.values():
        for run in runs:
            tried.setdefault(run.loss, set()).update(_rate(run))
    return {
        label: (rate, tuple(sorted(tried[runs[0].loss]))) for label, runs in used.items() for rate in _rate(runs[0])
    }


def _rate(run: RunRecord) -> tuple[float, ...]:
    """Return a run's learning rate; nothing where it is not recorded."""
    rate = run.identity.get("train.lr")
    return (float(rate),) if isinstance(rate, int | float) else ()
