"""Objectives times seeds on an equal budget, or runs that are finished: one table, with what it can say."""

import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kdcli import durable
from kdcli.config import CompareConfig
from kdcli.engine.events import Event, Report
from kdcli.errors import InputError, InterruptedRunError, KDError, UsageError
from kdcli.runs import notes
from kdcli.runs.aggregate import Group, make_rows
from kdcli.runs.cells import Cell, baseline_of, make_cells
from kdcli.runs.distill import distill, read_run, tell
from kdcli.runs.folder import RunFolder
from kdcli.runs.plan import describe_run, shown_examples
from kdcli.runs.plots import draw_curves
from kdcli.runs.prepare import objective_of
from kdcli.runs.records import Comparison, EvalRecord, Failure, Plan, RunRecord, ScoreInfo
from kdcli.runs.results import read_results
from kdcli.runs.same import check_same, label_runs
from kdcli.runs.tables import write_tables
from kdcli.runs.workshop import Workshop

Finished = tuple[RunRecord, EvalRecord]


def compare(
    config: CompareConfig,
    report: Report,
    *,
    command: str = "",
    repeat: str = "",
    workshop: Workshop | None = None,
) -> Comparison:
    """Train what is missing, evaluate, and put every cell into one table.

    A cell that fails does not stop the others.

    Args:
        config: the study; ``output`` is its folder.
        report: told what happens.
        command: what to type to go on after an interruption.
        repeat: the command line to which more seeds can be added, if it is another one.
        workshop: parts loaded before.

    Raises:
        KDError: a mistake in the settings, found before weights are read, or every cell failed.
        InterruptedRunError: stopped by a signal after saving.
    """
    if config.output is None:
        raise UsageError("CLI-20", "no study folder", where="-o", fix="give one, such as -o study")
    if config.data.eval is None:
        raise UsageError("CLI-20", "nothing to compare on", where="--eval-data", fix="give held-out rows")
    workshop = workshop or Workshop()
    cells = make_cells(config, workshop)
    tell(cells[0].prepared, report)
    states = [cell.state() for cell in cells]
    done, resumed = states.count("done"), sum(state.startswith("to resume") for state in states)
    report(Event("note", f"{len(cells)} cells: {done} done, {resumed} to resume, {len(cells) - done - resumed} to run"))
    finished, failed = _run_all(cells, workshop, report, command or f"kd compare ... -o {config.output}")
    labels = list(dict.fromkeys(cell.label for cell in cells))
    return _conclude(finished, failed, labels, baseline_of(config, labels), config, repeat or command)


def plan_compare(config: CompareConfig) -> Plan:
    """Check a comparison's settings and say what it would do; nothing is written."""
    cells = make_cells(config, Workshop())
    first = cells[0].prepared
    facts = describe_run(first)
    facts["objective"] = ", ".join(dict.fromkeys(cell.label for cell in cells))
    facts["cells"] = f"{len(cells)}: {len(config.losses)} objectives, {len(config.seeds)} seeds"
    states = tuple((str(cell.folder.path.name), cell.state() if config.output else "to run") for cell in cells)
    return Plan(facts, states, shown_examples(first), (*first.notes, *first.warnings))


def compare_runs(
    folders: Sequence[Path], baseline: str | None, report: Report, *, output: Path | None = None
) -> Comparison:
    """Compare finished runs.

    Args:
        folders: run folders, each with an evaluation.
        baseline: objective or folder that differences are taken to; default the first.
        report: told what happens.
        output: folder to write tables into.

    Raises:
        InputError: a folder holds no evaluated run, or teacher, student, data, test set, token
            budget or protocol differ; names the field and both values.
        UsageError: fewer than two runs, one given twice, or an unknown baseline.
    """
    if len(folders) < 2:
        raise UsageError(
            "CLI-18", f"needs two runs or more, got {len(folders)}", where="kd compare", fix="name another run folder"
        )
    finished = _read_all(folders)
    remarks = check_same(finished)
    labels = label_runs(finished)
    for remark in remarks:
        report(Event("warning", remark))
    groups: dict[str, dict[int, Finished]] = {}
    for label, (run, found) in zip(labels, finished, strict=True):
        groups.setdefault(label, {})[run.seed] = (run, found)
    chosen = _chosen_baseline(baseline, labels, finished)
    return _tabulate(groups, chosen, (), output, tuple(remarks), notes.Next())


def _run_all(
    cells: Sequence[Cell], workshop: Workshop, report: Report, command: str
) -> tuple[dict[str, dict[int, Finished]], list[Failure]]:
    finished: dict[str, dict[int, Finished]] = {}
    failed: list[Failure] = []
    for number, cell in enumerate(cells, start=1):
        report(Event("stage", f"cell {number} of {len(cells)}: {cell.name}", done=number - 1, total=len(cells)))
        try:
            record = _run(cell, workshop, named(report, cell.name), command)
        except InterruptedRunError:
            raise
        except Exception as error:  # one cell must not stop the others, whatever is wrong with it
            failed.append(_failure(cell, error))
            report(Event("warning", f"{cell.name} failed: {failed[-1].message}"))
            continue
        assert record.evaluation is not None, "a comparison has held-out rows"
        finished.setdefault(cell.label, {})[cell.seed] = (record, record.evaluation)
    return finished, failed


def _run(cell: Cell, workshop: Workshop, report: Report, command: str) -> RunRecord:
    config = cell.prepared.config.model_copy(update={"output": str(cell.folder.path)})
    return distill(config, report, command=command, workshop=workshop, prepared=cell.prepared)


def named(report: Report, name: str) -> Report:
    """Return a report that puts a name before every message, and keeps to itself what all cells share."""

    def tell_named(event: Event) -> None:
        if event.kind != "note":
            report(replace(event, message=f"{name}: {event.message}"))

    return tell_named


def _failure(cell: Cell, error: Exception) -> Failure:
    log = cell.folder.path / "error.log"
    if cell.folder.path.is_dir() and not log.is_file():
        durable.write_file(log, "".join(traceback.format_exception(error)))
    code = error.exit_code if isinstance(error, KDError) else 1
    message = str(error) if isinstance(error, KDError) else f"{type(error).__name__}: {error}"
    return Failure(cell.label, cell.seed, message, log, code)


def _conclude(
    finished: dict[str, dict[int, Finished]],
    failed: list[Failure],
    labels: list[str],
    baseline: str,
    config: CompareConfig,
    repeat: str,
) -> Comparison:
    groups = {label: finished[label] for label in labels if label in finished}
    if not groups:
        first = failed[0]
        raise UsageError("CMP-02", f"every cell failed; the first: {first.message}", fix=f"see {first.log}")
    remarks: tuple[str, ...] = ()
    if baseline not in groups:
        remarks = (f"the baseline {baseline} has no finished run: differences are taken to {next(iter(groups))}",)
        baseline = next(iter(groups))
    after = notes.Next(repeat, config.seeds)
    assert config.output is not None, "compare checks it"
    return _tabulate(groups, baseline, tuple(failed), Path(config.output), remarks, after)


def _tabulate(
    groups: dict[str, dict[int, Finished]],
    baseline: str,
    failed: tuple[Failure, ...],
    output: Path | None,
    remarks: tuple[str, ...],
    after: notes.Next,
) -> Comparison:
    infos = _columns([found for runs in groups.values() for _, found in runs.values()])
    made = [Group(label, runs) for label, runs in groups.items()]
    rows = make_rows(made, baseline, infos)
    said = [*remarks, *notes.conclusions(rows, baseline, infos), *notes.about_scores(made), *after.sentences(rows)]
    comparison = Comparison(baseline, rows, infos, tuple(said), output, failed)
    if output is not None:
        write_tables(output, comparison, made)
        draw_curves(output, made)
    return comparison


def _columns(records: Sequence[EvalRecord]) -> tuple[ScoreInfo, ...]:
    """Return the scores that every evaluation has, in the first one's order."""
    return tuple(info for info in records[0].infos if all(info.name in record.estimates for record in records))


def _read_all(folders: Sequence[Path]) -> list[Finished]:
    """Read runs and the evaluation that all of them have."""
    runs = [read_run(folder) for folder in folders]
    there = [RunFolder(folder).evaluations() for folder in folders]
    shared = [name for name in there[0] if all(name in found for found in there)]
    if not shared:
        bare = next((folder for folder, found in zip(folders, there, strict=True) if not found), folders[0])
        raise InputError(
            "CMP-04",
            "no evaluation on a test set that all runs share",
            where=str(bare),
            fix=f"make it with: kd eval {bare} --data test.jsonl",
        )
    return [(run, read_results(found[shared[0]])) for run, found in zip(runs, there, strict=True)]


def _chosen_baseline(baseline: str | None, labels: Sequence[str], finished: Sequence[Finished]) -> str:
    if baseline is None:
        return labels[0]
    by_folder = {str(run.folder): label for label, (run, _) in zip(labels, finished, strict=True)}
    if baseline in by_folder:
        return by_folder[baseline]
    wanted = objective_of(baseline)[1]
    if wanted not in labels:
        known = ", ".join(dict.fromkeys(labels))
        raise UsageError(
            "CLI-18", f'"{baseline}" is not among the runs', where="--baseline", fix=f"choose one of {known}"
        )
    return wanted
