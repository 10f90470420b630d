"""``kd compare``: trains variants times seeds on an equal budget."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

from kdcli import distributed
from kdcli.comparison import conclusions
from kdcli.comparison.records import Comparison, Failure
from kdcli.config import resolve
from kdcli.config.schema import CompareConfig
from kdcli.config.sweep import STUDENT, format_choice, read_axes
from kdcli.distill.plan import (
    CellState,
    CostEstimate,
    Fact,
    FolderState,
    Plan,
    cost_facts,
    cost_numbers,
    describe_run,
    duration,
    estimate,
    shown_examples,
)
from kdcli.distill.prepare import Prepared, class_metrics
from kdcli.distill.records import BEFORE
from kdcli.distill.run import report_notes
from kdcli.errors import MachineError, UsageError
from kdcli.events import Event, Report
from kdcli.loading.session import Session
from kdcli.registry import plugins
from kdcli.storage import atomic
from kdcli.storage.run_dir import MADE
from kdcli.study.cells import Cell, baseline_of, make_cells, tuned_by, tuning_seeds, variants
from kdcli.study.executors.select import check_executor, executor_name, make_executor, with_threads
from kdcli.study.finished import compare_runs
from kdcli.study.references import LABELS, Measured, measure_references, plan_references, start_label
from kdcli.study.results import Finished, tabulate
from kdcli.study.scheduler import LOGS, PLAN, Outcome, Scheduler, collect, named
from kdcli.study.shared_cache import with_cache
from kdcli.study.study_dir import Entry, ReferenceEntry, Study, is_study, read_study, write_study
from kdcli.study.tracking import log_table
from kdcli.study.tuning import Tuning, choose, forget_tuning, real_failures, winners, write_tuning
from kdcli.text import typed

__all__ = ["compare", "compare_runs", "named", "plan_compare"]


# What a comparison would do: its cells and how far they are, steps, cost; nothing is written.


def plan_compare(config: CompareConfig) -> Plan:
    """Check a comparison's settings and say what it would do; nothing is written."""
    hardware, said = with_threads(config.execution, config.hardware)
    config = _measuring_classes(config.model_copy(update={"hardware": hardware}))
    session = Session()
    cells = make_cells(config, session)
    later = _reported(config, cells, session)
    both = [*cells, *later]
    states = [cell.state() if config.output else FolderState() for cell in both]
    costs = [estimate(cell.prepared) for cell in both]
    first = cells[0].prepared
    facts = _describe(config, cells)
    labels = list(dict.fromkeys(cell.label for cell in cells))
    facts["objective"] = Fact(", ".join(labels), {"objectives": labels})
    facts["runs"] = _count(cells, len(later))
    if first.test is not None:
        planned = plan_references(_starts(config, cells), config.seeds, session)
        names = ", ".join(dict.fromkeys(one.label for one in planned.measurements))
        number = len(planned.measurements)
        said_of = f"{names}: {number} evaluations on the same rows, no training"
        facts["reference lines"] = Fact(said_of, {"evaluations": number})
    facts |= cost_facts(max(costs, key=lambda one: one.peak_bytes))
    facts["training time"] = _time(config, both, states, costs)
    warned = dict.fromkeys(warning for cell in cells for warning in cell.prepared.warnings)
    notes = (*said, *first.notes, *warned)
    named = tuple((cell.folder.path.name, str(state)) for cell, state in zip(cells, states, strict=False))
    return Plan(facts, named, shown_examples(first), notes, cost_numbers(costs, first.steps))


def _reported(config: CompareConfig, cells: Sequence[Cell], session: Session) -> list[Cell]:
    """Return the runs after tuning, with the seeds of the table; of the first value where none is chosen yet."""
    output = Path(config.output) if config.output is not None else None
    chosen = read_study(output).chosen if output is not None and config.tune and is_study(output) else {}
    lines: dict[str, Cell] = {}
    for cell in cells:
        if chosen.get(cell.label, format_choice(cell.tried)) == format_choice(cell.tried):
            lines.setdefault(cell.label, cell)
    tried = {cell.seed for cell in cells}
    seeds = [seed for seed in config.seeds if seed not in tried]
    return [cell.reported(seed, config.evaluation.metrics, session) for cell in lines.values() for seed in seeds]


def _starts(config: CompareConfig, cells: Sequence[Cell]) -> dict[str, Prepared]:
    """Return label of each student before training -> a run that begins with it, the one measured last."""
    students = {line.label: line.student for line in variants(config)}
    return {
        LABELS[BEFORE] if (student := students[cell.label]) is None else start_label(student): cell.prepared
        for cell in cells
    }


def _describe(config: CompareConfig, cells: Sequence[Cell]) -> dict[str, Fact]:
    """Describe the first run, with every student where there are several."""
    facts = describe_run(cells[0].prepared)
    if config.student is None:
        others = [describe_run(run)["student"] for run in _starts(config, cells).values()]
        names = [str(run.pair.student) for run in _starts(config, cells).values()]
        facts["student"] = Fact("; ".join(one.text for one in others), {"students": names})
    return facts


def _count(cells: Sequence[Cell], later: int) -> Fact:
    labels, tried, seeds = ({getattr(cell, name) for cell in cells} for name in ("label", "tried", "seed"))
    values = f", {len(tried)} values tried for each" if len(tried) > 1 else ""
    runs = f"; {later} more of the values that win, with the seeds of the table" if later else ""
    steps = sum(cell.prepared.steps for cell in cells)
    said = f"{len(cells)}: {len(labels)} objectives, {len(seeds)} seeds{values}; {steps:,} steps in all{runs}"
    return Fact(said, {"runs": len(cells), "objectives": len(labels), "seeds": len(seeds), "steps": steps})


def _time(
    config: CompareConfig, cells: Sequence[Cell], states: Sequence[FolderState], costs: Sequence[CostEstimate]
) -> Fact:
    """Say how long the missing cells will train: measured on finished runs where there are any."""
    missing = [index for index, state in enumerate(states) if state.state is not CellState.DONE]
    spent = [
        (cell.folder.status().get("seconds", 0.0), cost.seconds or 0.0)
        for cell, cost, state in zip(cells, costs, states, strict=True)
        if state.state is CellState.DONE
    ]
    guessed = sum(costs[index].seconds or 0.0 for index in missing)
    measured = sum(seconds for seconds, _ in spent)
    if measured:
        guessed *= measured / sum(seconds for _, seconds in spent)
    jobs = (config.execution.jobs or 1) if executor_name(config.execution, config.hardware) != "inline" else 1
    if not missing:
        return Fact("none: every run is done", {"seconds": 0.0, "runs": 0})
    how = "measured on finished runs" if measured else "an estimate from one matrix product"
    at_once = f", {jobs} at a time" if jobs > 1 else ""
    seconds = guessed / min(jobs, len(missing))
    said = f"about {duration(seconds)} for {len(missing)} runs{at_once}; {how}"
    return Fact(said, {"seconds": seconds, "runs": len(missing), "runs_at_once": jobs})


def compare(
    config: CompareConfig,
    report: Report,
    *,
    command: str = "",
    repeat: str = "",
    session: Session | None = None,
) -> Comparison:
    """Train what is missing, evaluate, and put every cell into one table.

    A cell that fails does not stop the others.

    Args:
        config: the study; ``output`` is its folder.
        report: called with events.
        command: what to type to go on after an interruption; default the study's folder alone.
        repeat: the command line to which more seeds can be added; default the study's folder alone.
        session: parts loaded before.

    Raises:
        KDError: a mistake in the settings, found before weights are read, or every cell failed.
        InterruptedRunError: stopped by a signal after saving.
    """
    output = _check(config)
    session = session or Session()
    hardware, said = with_threads(config.execution, config.hardware)
    config = config.model_copy(update={"tune_seeds": tuning_seeds(config) or None, "hardware": hardware})
    config = _measuring_classes(config)
    for note in said:
        report(Event("note", note))
    cells = make_cells(config, session)
    _reported(config, cells, session)  # checked now and not after tuning
    report_notes(cells[0].prepared, report)
    states = [cell.state().state for cell in cells]
    done, resumed = states.count(CellState.DONE), states.count(CellState.TO_RESUME)
    report(Event("note", f"{len(cells)} runs: {done} done, {resumed} to resume, {len(cells) - done - resumed} to run"))
    _write(config, output, cells, session)
    with suppress(MachineError):  # a study that is done can be read where nothing may be written
        for one in (output, *(output / name for name in (MADE, PLAN, LOGS))):
            atomic.remove_temporaries(one)
    again = command or _again(output)
    if config.teacher_cache == "auto":
        cells = with_cache(output, cells, report, session, again)
    executor = make_executor(config.execution, hardware, output, cells[0].prepared.device, session, again)
    try:
        grid = Scheduler(executor, output, report, session, again, collect)
        cells, outcome, tuning, lost = _tuned(config, output, cells, grid, report, session)
    finally:
        executor.close()
    failed = [*lost, *(outcome.failed[index] for index in sorted(outcome.failed))]
    lines = _references(config, output, cells, outcome, report, session)
    failed += lines.failed
    found = _conclude(config, output, cells, outcome, failed, tuning, repeat or _again(output), lines)
    if config.train.report_to and done < len(states):
        log_table(config.train.report_to, output, found)
    return found


def _check(config: CompareConfig) -> Path:
    """Refuse, before anything is loaded, what cannot become a study."""
    if distributed.world() > 1:
        fix = "start kd compare once; --gpus N gives each run N processes"
        raise UsageError("CLI-22", "kd compare was started by a launcher of several processes", fix=fix)
    if config.output is None:
        raise UsageError("CLI-20", "no study folder", where="-o", fix="give one, such as -o study")
    if config.data.eval is None:
        raise UsageError("CLI-20", "nothing to compare on", where="--eval-data", fix="give held-out rows")
    check_executor(config.execution, config.hardware)
    return Path(config.output)


def _measuring_classes(config: CompareConfig) -> CompareConfig:
    """Return settings with the metrics of classes, where the first student classifies and none was asked for."""
    axes = {axis.name: axis.values for axis in read_axes(config.vary, "--vary")}
    first = config.student or next(iter(axes.get(STUDENT, ())), None)
    evaluation = class_metrics(config.evaluation, first, config.teacher)
    return config.model_copy(update={"evaluation": evaluation})


def _again(output: Path) -> str:
    return plugins.again(f"kd compare -o {typed(output)}")


def _tuned(
    config: CompareConfig, output: Path, cells: list[Cell], grid: Scheduler[Finished], report: Report, session: Session
) -> tuple[list[Cell], Outcome[Finished], Tuning | None, list[Failure]]:
    """Run the cells; with ``--tune``, choose on development rows, then measure the chosen ones on the test rows."""
    outcome = grid.run(cells)
    if not config.tune:
        forget_tuning(output)
        _write(config, output, cells, session, measured=_measured(cells, outcome))
        return cells, outcome, None, []
    tuning = choose(cells, outcome, tuned_by(config, cells[0].prepared.test), config.seeds)
    write_tuning(output, tuning)
    for sentence in tuning.sentences():
        report(Event("note", sentence))
    lost = real_failures([outcome.failed[index] for index in sorted(outcome.failed)], tuning)
    metrics = config.evaluation.metrics
    final = [cell.reported(seed, metrics, session) for cell in winners(cells, tuning) for seed in config.seeds]
    _write(config, output, [*cells, *final], session, tuning)
    found = grid.run(final)
    measured = _measured(cells, outcome) | _measured(final, found)
    _write(config, output, [*cells, *final], session, tuning, measured)
    return final, found, tuning, lost


def _measured(cells: Sequence[Cell], outcome: Outcome[Finished]) -> dict[str, Path]:
    """Return the folder of each finished cell's evaluation, which another protocol may have made a second one."""
    found = {cells[index].name: record.folder for index, (_, record) in outcome.finished.items()}
    return {name: folder for name, folder in found.items() if folder is not None}


def _references(
    config: CompareConfig,
    output: Path,
    cells: Sequence[Cell],
    outcome: Outcome[Finished],
    report: Report,
    session: Session,
) -> Measured:
    """Measure the student before training and the teacher on the rows that the finished cells were measured on."""
    if not outcome.finished:
        return Measured()
    index = min(outcome.finished)
    planned = plan_references(_starts(config, cells), config.seeds, session)
    return measure_references(planned, output, outcome.finished[index][1], session, report)


def _write(
    config: CompareConfig,
    output: Path,
    cells: Sequence[Cell],
    session: Session,
    tuning: Tuning | None = None,
    measured: Mapping[str, Path] = MappingProxyType({}),
) -> None:
    """Write what the study consists of, so that it can be looked at and continued by its folder alone.

    Args:
        config: the study.
        output: its folder.
        cells: all of them.
        session: what is loaded already.
        tuning: what was tried and chosen; None before that is known.
        measured: cell -> folder of its evaluation, where that is known.
    """
    lines = variants(config)
    entries = tuple(
        Entry(
            name=cell.name,
            label=cell.label,
            seed=cell.seed,
            tried=format_choice(cell.tried),
            folder=str(cell.folder.path.relative_to(output)),
            evaluation=str(measured.get(cell.name, cell.evaluation).relative_to(cell.folder.path)),
            steps=cell.prepared.steps,
        )
        for cell in cells
    )
    labels = tuple(line.label for line in lines)
    chosen = tuning.chosen if tuning is not None else {}
    planned = plan_references(_starts(config, cells), config.seeds, session).measurements
    references = tuple(ReferenceEntry(one.label, one.role, one.seed, one.folder) for one in planned)
    study = Study(baseline_of(config, lines), labels, config.seeds, entries, chosen, references)
    write_study(output, study, resolve.to_yaml(config))


def _conclude(
    config: CompareConfig,
    output: Path,
    cells: Sequence[Cell],
    outcome: Outcome[Finished],
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
        raise kind("CMP-02", f"every run failed; the first: {first.message}", fix=f"see {first.log}")
    baseline = baseline_of(config, variants(config))
    remarks = tuple(tuning.sentences()) if tuning is not None else ()
    if baseline not in groups:
        remarks += (f"the baseline {baseline} has no finished run: differences are taken to {next(iter(groups))}",)
        baseline = next(iter(groups))
    remarks += tuple(lines.remarks)
    after, rates = conclusions.SuggestedCommand(repeat, config.seeds), _rates(config, cells)
    starts = {line.label: start_label(line.student) for line in variants(config) if line.student is not None}
    return tabulate(
        groups, baseline, tuple(failed), output, remarks, after, lines.references, rates, tuned=tuning is not None,
        starts=starts,
    )  # fmt: skip


def _rates(config: CompareConfig, cells: Sequence[Cell]) -> dict[str, tuple[float, tuple[float, ...]]]:
    """Return label -> its learning rate, and all that the study tries for its objective."""
    tuned = [value for axis in read_axes(config.tune, "--tune") if axis.name == "lr" for value in axis.values]
    objectives = {line.label: line.objective for line in variants(config)}
    used: dict[str, set[float]] = {}
    for cell in cells:
        used.setdefault(objectives[cell.label], set()).add(cell.prepared.train.lr)
    return {
        cell.label: (cell.prepared.train.lr, tuple(sorted({*used[objectives[cell.label]], *tuned}))) for cell in cells
    }
