"""Reads back what a report needs: a study's folder, or runs that are finished."""

from collections.abc import Sequence
from pathlib import Path

from kdcli.engine.events import silent
from kdcli.errors import InputError
from kdcli.runs.aggregate import Group
from kdcli.runs.conclude import conclude, read_comparison
from kdcli.runs.distill import read_run
from kdcli.runs.evaluation.results import read_results
from kdcli.runs.finished import gather
from kdcli.runs.finished_lines import recorded_lines
from kdcli.runs.folder import RunFolder
from kdcli.runs.records import Comparison, EvalRecord, Reference, RunRecord
from kdcli.runs.references import LABELS, read_references
from kdcli.runs.report.page import write_report
from kdcli.runs.seal import seal_again
from kdcli.runs.study import Entry, Study, is_study, read_study
from kdcli.runs.tidy import RESULTS, About

Finished = tuple[RunRecord, EvalRecord]


def load(folders: Sequence[Path]) -> tuple[Comparison, list[Group], list[Reference]]:
    """Return a comparison, its groups, and the reference models' evaluations.

    Args:
        folders: one folder that kd compare wrote, or run folders, each with an evaluation.

    Raises:
        InputError: neither; or nothing in it is finished and evaluated.
        IntegrityError: a file is not what its manifest says.
    """
    first = folders[0]
    if not first.is_dir():
        raise InputError("RUN-03", "no such folder", where=str(first), fix="give a study, or run folders")
    if len(folders) == 1 and (first / RESULTS).is_file():
        if not is_study(first):
            return read_comparison(first), [], []
        study = read_study(first)
        return read_comparison(first), groups_of(study, first), read_references(first, study.references)
    if len(folders) == 1 and not RunFolder(first).is_run:
        fix = "give a folder of kd compare -o, or of kd distill"
        raise InputError("CMP-05", "neither a study nor a run", where=str(first), fix=fix)
    groups, remarks = gather(folders, silent)
    made = [Group(label, runs) for label, runs in groups.items()]
    lines = recorded_lines([one for group in made for one in group.runs.values()])
    absent = [LABELS[role] for role in LABELS if role not in {one.role for one in lines}]
    if absent:
        remarks += (f"no line for {' or '.join(absent)}: no study keeps it; kd compare with these runs measures it",)
    return conclude(made, About(next(iter(groups)), remarks), None, lines), made, lines


def finished_table(folder: Path) -> Comparison | None:
    """Return the comparison that a study's own tables hold, None unless they hold every cell.

    Args:
        folder: the study.

    Raises:
        KDError: it holds no study, or a damaged one.
    """
    if not (folder / RESULTS).is_file():
        return None
    found = read_comparison(folder)
    there = {(row.label, seed) for row in found.rows for seed in row.seeds}
    return found if {(entry.label, entry.seed) for entry in _final(read_study(folder))} <= there else None


def groups_of(study: Study, folder: Path) -> list[Group]:
    """Return the finished cells behind each line of a study.

    Args:
        study: its cells.
        folder: where it lies.
    """
    groups: dict[str, dict[int, Finished]] = {}
    for entry in _final(study):
        run, evaluation = folder / entry.folder, folder / entry.folder / entry.evaluation
        if RunFolder(run).is_run and RunFolder(run).is_done and evaluation.is_dir():
            groups.setdefault(entry.label, {})[entry.seed] = (read_run(run), read_results(evaluation))
    return [Group(label, runs) for label, runs in groups.items()]


def _final(study: Study) -> list[Entry]:
    """Return the cells behind the table: with tuning, the chosen values as measured last, of the seeds reported."""
    kept: dict[tuple[str, int], Entry] = {}
    for entry in study.cells:
        if study.chosen.get(entry.label, entry.tried) == entry.tried and entry.seed in study.seeds:
            kept[entry.label, entry.seed] = entry
    order = {label: place for place, label in enumerate(study.labels)}
    return sorted(kept.values(), key=lambda entry: (order.get(entry.label, len(order)), entry.seed))


def write_page(folders: Sequence[Path], target: Path) -> None:
    """Write the report of a study or of runs; a study's digests then hold for it too.

    Args:
        folders: as for :func:`load`.
        target: the file.
    """
    comparison, groups, references = load(folders)
    write_report(target, comparison, groups, references)
    seal_again(target)
