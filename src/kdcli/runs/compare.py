"""Contenders times seeds on an equal budget: one table, with what it can say."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

from kdcli import durable, plugins, processes, settings
from kdcli.config import CompareConfig
from kdcli.engine.events import Event, Report
from kdcli.errors import MachineError, UsageError
from kdcli.runs import notes
from kdcli.runs.cells import Cell, baseline_of, contenders, make_cells, tuning_seeds
from kdcli.runs.distill import tell
from kdcli.runs.executors.choose import check_executor, make_executor, with_threads
from kdcli.runs.finished import compare_runs
from kdcli.runs.folder import MADE
from kdcli.runs.grid import LOGS, PLAN, Grid, Outcome, named
from kdcli.runs.plan_study import plan_compare
from kdcli.runs.records import Comparison, Failure
from kdcli.runs.references import Measured, measure_references, plan_references
from kdcli.runs.study import Entry, ReferenceEntry, Study, write_study
from kdcli.runs.study_cache import with_cache
from kdcli.runs.tabulate import Finished, tabulate
from kdcli.runs.tuned_by import tuned_by
from kdcli.runs.tuning import Tuning, choose, forget_tuning, real_failures, winners, write_tuning
from kdcli.runs.workshop import Workshop
from kdcli.text import typed
from kdcli.variations import read_axes, words

__all__ = ["compare", "compare_runs", "named", "plan_compare"]


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
        command: what to type to go on after an interruption; default the study's folder alone.
        repeat: the command line to which more seeds can be added; default the study's folder alone.
        workshop: parts loaded before.

    Raises:
        KDError: a mistake in the settings, found before weights are read, or every cell failed.
        InterruptedRunError: stopped by a signal after saving.
    """
    output = _check(config)
    workshop = workshop or Workshop()
    config, said = with_threads(config.model_copy(update={"tune_seeds": tuning_seeds(config) or None}))
    for note in said:
        report(Event("note", note))
    cells = make_cells(config, workshop)
    tell(cells[0].prepared, report)
    states = [cell.state() for cell in cells]
    done, resumed = states.count("done"), sum(state.startswith("to resume") for state in states)
    report(Event("note", f"{len(cells)} cells: {done} done, {resumed} to resume, {len(cells) - done - resumed} to run"))
    _write(config, output, cells, workshop)
    with suppress(MachineError):  # a study that is done can be read where nothing may be written
        for one in (output, *(output / name for name in (MADE, PLAN, LOGS))):
            durable.sweep(one)
    cells = with_cache(config, output, cells, report, workshop, command or _again(output))
    executor = make_executor(config, cells[0].prepared.device, workshop, command or _again(output))
    try:
        grid = Grid(executor, output, report, workshop, command or _again(output))
        cells, outcome, tuning, lost = _tuned(config, output, cells, grid, report, workshop)
    finally:
        executor.close()
    failed = [*lost, *(outcome.failed[index] for index in sorted(outcome.failed))]
    lines = _references(config, output, cells, outcome, report, workshop)
    failed += lines.failed
    return _conclude(config, output, cells, outcome, failed, tuning, repeat or _again(output), lines)


def _check(config: CompareConfig) -> Path:
    """Refuse, before anything is loaded, what cannot become a study."""
    if processes.world() > 1:
        fix = "start kd compare once; --gpus N gives each cell N processes"
        raise UsageError("CLI-22", "kd compare was started by a launcher of several processes", fix=fix)
    if config.output is None:
        raise UsageError("CLI-20", "no study folder", where="-o", fix="give one, such as -o study")
    if config.data.eval is None:
        raise UsageError("CLI-20", "nothing to compare on", where="--eval-data", fix="give held-out rows")
    check_executor(config)
    return Path(config.output)


def _again(output: Path) -> str:
    return plugins.again(f"kd compare -o {typed(output)}")


def _tuned(
    config: CompareConfig, output: Path, cells: list[Cell], grid: Grid, report: Report, workshop: Workshop
) -> tuple[list[Cell], Outcome, Tuning | None, list[Failure]]:
    """Run the cells; with ``--tune``, choose on development rows, then measure the chosen ones on the test rows."""
    outcome = grid.run(cells)
    if not config.tune:
        forget_tuning(output)
        _write(config, output, cells, workshop, measured=_measured(cells, outcome))
        return cells, outcome, None, []
    tuning = choose(cells, outcome, tuned_by(config, cells[0].prepared.test), config.seeds)
    write_tuning(output, tuning)
    for sentence in tuning.sentences():
        report(Event("note", sentence))
    lost = real_failures([outcome.failed[index] for index in sorted(outcome.failed)], tuning)
    metrics = config.evaluation.metrics
    final = [cell.reported(seed, metrics, workshop) for cell in winners(cells, tuning) for seed in config.seeds]
    _write(config, output, [*cells, *final], workshop, tuning)
    found = grid.run(final)
    measured = _measured(cells, outcome) | _measured(final, found)
    _write(config, output, [*cells, *final], workshop, tuning, measured)
    return final, found, tuning, lost


def _measured(cells: Sequence[Cell], outcome: Outcome) -> dict[str, Path]:
    """Return the folder of each finished cell's evaluation, which another protocol may have made a second one."""
    found = {cells[index].name: record.folder for index, (_, record) in outcome.finished.items()}
    return {name: folder for name, folder in found.items() if folder is not None}


def _references(
    config: CompareConfig, output: Path, cells: Sequence[Cell], outcome: Outcome, report: Report, workshop: Workshop
) -> Measured:
    """Measure the student before training and the teacher on the rows that the finished cells were measured on."""
    if not outcome.finished:
        return Measured()
    index = min(outcome.finished)
    planned = plan_references(cells[index].prepared, config.seeds, workshop)
    return measure_references(planned, output, outcome.finished[index][1], workshop, report)


def _write(
    config: CompareConfig,
    output: Path,
    cells: Sequence[Cell],
    workshop: Workshop,
    tuning: Tuning | None = None,
    measured: Mapping[str, Path] = MappingProxyType({}),
) -> None:
    """Write what the study consists of, so that it can be looked at and continued by its folder alone.

    Args:
        config: the study.
        output: its folder.
        cells: all of them.
        workshop: what is loaded already.
        tuning: what was tried and chosen; None before that is known.
        measured: cell -> folder of its evaluation, where that is known.
    """
    lines = contenders(config)
    entries = tuple(
        Entry(
            name=cell.name,
            label=cell.label,
            seed=cell.seed,
            tried=words(cell.tried),
            folder=str(cell.folder.path.relative_to(output)),
            evaluation=str(measured.get(cell.name, cell.evaluation).relative_to(cell.folder.path)),
            steps=cell.prepared.steps,
        )
        for cell in cells
    )
    labels = tuple(line.label for line in lines)
    chosen = tuning.chosen if tuning is not None else {}
    planned = plan_references(cells[-1].prepared, config.seeds, workshop).measurements
    references = tuple(ReferenceEntry(one.label, one.role, one.seed, one.folder) for one in planned)
    study = Study(baseline_of(config, lines), labels, config.seeds, entries, chosen, references)
    write_study(output, study, settings.to_yaml(config))


def _conclude(
    config: CompareConfig,
    output: Path,
    cells: Sequence[Cell],
    outcome: Outcome,
    failed: Sequence[Failure],
    tuning: Tuning | None,
    repeat: str,
    lines: Measured,
) -> Comparison:
    groups: dict[str, dict[int, Finished]] = {}
    for index, cell in enumerate(cells):
        if index in outcome.finished:
            groups.setdefault(cell.label, {})[cell.seed] = outcome.finished[index]
    if not groups:
        machine = [one for one in failed if one.exit_code == MachineError.exit_code]
        first, kind = (machine[0], MachineError) if machine else (failed[0], UsageError)
        raise kind("CMP-02", f"every cell failed; the first: {first.message}", fix=f"see {first.log}")
    baseline = baseline_of(config, contenders(config))
    remarks = tuple(tuning.sentences()) if tuning is not None else ()
    if baseline not in groups:
        remarks += (f"the baseline {baseline} has no finished run: differences are taken to {next(iter(groups))}",)
        baseline = next(iter(groups))
    remarks += tuple(lines.remarks)
    after, rates = notes.Next(repeat, config.seeds), _rates(config, cells)
    return tabulate(groups, baseline, tuple(failed), output, remarks, after, lines.references, rates)


def _rates(config: CompareConfig, cells: Sequence[Cell]) -> dict[str, tuple[float, tuple[float, ...]]]:
    """Return label -> its learning rate, and all that the study tries for its objective."""
    tuned = [value for axis in read_axes(config.tune, "--tune") if axis.name == "lr" for value in axis.values]
    objectives = {line.label: line.objective for line in contenders(config)}
    used: dict[str, set[float]] = {}
    for cell in cells:
        used.setdefault(objectives[cell.label], set()).add(cell.prepared.config.train.lr)
    return {
        cell.label: (cell.prepared.config.train.lr, tuple(sorted({*used[objectives[cell.label]], *tuned})))
        for cell in cells
    }
