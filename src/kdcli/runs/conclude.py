"""From finished cells to a comparison: tidy tables first, everything else is computed from those."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kdcli import durable
from kdcli.runs import notes, seal
from kdcli.runs.against_start import against_start
from kdcli.runs.aggregate import Group, Machine, judge, make_references, make_rows, pareto
from kdcli.runs.costs import COSTS, cost_of, machine_table, read_machine
from kdcli.runs.evaluation.results import SAMPLES
from kdcli.runs.records import Comparison, EvalRecord, Reference, ScoreInfo
from kdcli.runs.study import is_study
from kdcli.runs.tables import write_tables
from kdcli.runs.tidy import MAKE, RESULTS, About, Cell, Tidy, make_tidy, read_tidy, write_tidy


def conclude(
    groups: Sequence[Group], about: About, folder: Path | None, references: Sequence[Reference] = ()
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
    cells = [
        Cell(group.label, run, found, cost_of(run))
        for group in groups
        for _, (run, found) in sorted(group.runs.items())
    ]
    tidy = make_tidy(cells, infos, about, references)
    machine = {(cell.label, cell.run.seed): (cell.run.seconds, cell.run.peak_bytes) for cell in cells}
    if folder is None:
        return _with_next(compare_tidy(tidy, machine, None), about)
    seal.unseal(folder)
    write_tidy(folder, tidy)
    durable.write_file(folder / COSTS, machine_table([(cell.label, cell.run, cell.cost) for cell in cells]))
    comparison = _computed(folder)
    write_tables(folder, comparison)
    seal.seal(folder)
    return _with_next(comparison, about)


def _with_next(comparison: Comparison, about: About) -> Comparison:
    """Add what to type next: it names folders, so no table holds it."""
    after = notes.Next(about.command, about.seeds).sentences(comparison.rows)
    return replace(comparison, notes=(*comparison.notes, *after))


def read_comparison(folder: Path) -> Comparison:
    """Compute a comparison again from the tables in its folder.

    Args:
        folder: what ``kd compare`` wrote.

    Raises:
        InputError: it holds no comparison.
        IntegrityError: a table is not what it was when the comparison was finished.
    """
    names = tuple(name for name in (RESULTS, SAMPLES, COSTS) if (folder / name).is_file())
    sealed = is_study(folder) or (folder / seal.NAME).is_file()  # the tables alone may have been copied elsewhere
    seal.check_named(folder, names, MAKE, needed=sealed and bool(names))
    return _computed(folder)


def _computed(folder: Path) -> Comparison:
    tidy = read_tidy(folder)
    return compare_tidy(tidy, read_machine(folder / COSTS, list(tidy.runs)), folder)


def compare_tidy(tidy: Tidy, machine: Machine, folder: Path | None) -> Comparison:
    """Compute a comparison from tidy tables.

    Args:
        tidy: the tables.
        machine: label and seed -> seconds and peak bytes.
        folder: where the tables lie.
    """
    infos, about = tidy.infos, tidy.about
    verdicts = {info.name: judge(tidy, info) for info in infos}
    rows = make_rows(tidy, verdicts, machine)
    detectable = {name: one.detectable for name, one in verdicts.items()}
    variance = {name: one.variance for name, one in verdicts.items() if one.variance is not None}
    fronts = pareto(rows, infos)
    after = notes.Next(about.command, about.seeds)
    tuned = any(remark.startswith("tuned on ") for remark in about.remarks)
    references = make_references(tidy, verdicts)
    start = against_start(rows, references, infos, about.rates)
    said = [
        *about.remarks,
        *notes.conclusions(rows, about.baseline, infos, detectable, variance, fronts, tuned=tuned, start=start),
        *tidy.notes,
        *after.sentences(rows),
    ]
    return Comparison(
        about.baseline, rows, infos, tuple(said), folder, about.failed,
        detectable=detectable, variance=variance, pareto=fronts, references=references,
    )  # fmt: skip


def shared_scores(records: Sequence[EvalRecord]) -> tuple[ScoreInfo, ...]:
    """Return the scores that every evaluation has, in the first one's order."""
    return tuple(info for info in records[0].infos if all(info.name in record.estimates for record in records))
