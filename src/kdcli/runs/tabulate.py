"""From evaluated runs to their comparison, its files and its pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from kdcli.runs import notes
from kdcli.runs.aggregate import Group
from kdcli.runs.conclude import conclude
from kdcli.runs.records import Comparison, EvalRecord, Failure, Reference, RunRecord
from kdcli.runs.report.publish import publish
from kdcli.runs.tidy import About

Finished: TypeAlias = tuple[RunRecord, EvalRecord]


def tabulate(
    groups: Mapping[str, dict[int, Finished]],
    baseline: str,
    failed: tuple[Failure, ...],
    output: Path | None,
    remarks: tuple[str, ...],
    after: notes.Next,
    references: Sequence[Reference] = (),
    rates: Mapping[str, tuple[float, tuple[float, ...]]] | None = None,
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
    """
    made = [Group(label, runs) for label, runs in groups.items()]
    about = About(baseline, remarks, after.command, after.seeds, failed, rates or rates_of(groups))
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
