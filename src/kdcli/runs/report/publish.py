"""What a comparison leaves for readers: training curves, the report, and digests of all that lies beside them."""

from collections.abc import Sequence
from pathlib import Path

from kdcli.runs.aggregate import Group
from kdcli.runs.plots import draw_curves
from kdcli.runs.records import Comparison, Reference
from kdcli.runs.report.page import NAME, write_report
from kdcli.runs.seal import seal


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
    seal(folder)
