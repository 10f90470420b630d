"""From evaluated runs to their comparison, its files and its pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from kdcli.runs import notes
from kdcli.runs.aggregate import Group
from kdcli.runs.conclude import conclude
from kdcli.runs.records import Comparison, EvalRecord, Failure, RunRecord
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
) -> Comparison:
    """Return the comparison, and write its files.

    Args:
        groups: label -> seed -> run and evaluation, in the order of the lines.
        baseline: label that differences are taken to.
        failed: cells that could not be finished.
        output: folder to write into; None writes nothing.
        remarks: notes that come first.
        after: what to type next.
    """
    made = [Group(label, runs) for label, runs in groups.items()]
    comparison = conclude(made, About(baseline, remarks, after.command, after.seeds, failed), output)
    if output is not None:
        publish(output, comparison, made)
    return comparison
