"""What a comparison would do: its cells and how far they are, steps, cost; nothing is written."""

from collections.abc import Sequence
from pathlib import Path

from kdcli.config import CompareConfig
from kdcli.runs.cells import Cell, make_cells
from kdcli.runs.estimate import Estimate, estimate
from kdcli.runs.executors.choose import executor_name, with_threads
from kdcli.runs.plan import cost_facts, cost_numbers, describe_run, duration, shown_examples
from kdcli.runs.records import Plan
from kdcli.runs.references import plan_references
from kdcli.runs.study import is_study, read_study
from kdcli.runs.workshop import Workshop
from kdcli.variations import words


def plan_compare(config: CompareConfig) -> Plan:
    """Check a comparison's settings and say what it would do; nothing is written."""
    config, said = with_threads(config)
    workshop = Workshop()
    cells = make_cells(config, workshop)
    later = _reported(config, cells, workshop)
    both = [*cells, *later]
    states = [cell.state() if config.output else "to run" for cell in both]
    costs = [estimate(cell.prepared) for cell in both]
    first = cells[0].prepared
    facts = describe_run(first)
    facts["objective"] = ", ".join(dict.fromkeys(cell.label for cell in cells))
    facts["cells"] = _count(cells, len(later))
    if first.test is not None:
        planned = plan_references(first, config.seeds, workshop)
        names = ", ".join(dict.fromkeys(one.label for one in planned.measurements))
        facts["reference lines"] = f"{names}: {len(planned.measurements)} evaluations on the same rows, no training"
    facts |= cost_facts(max(costs, key=lambda one: one.peak_bytes))
    facts["training time"] = _time(config, both, states, costs)
    warned = dict.fromkeys(warning for cell in cells for warning in cell.prepared.warnings)
    notes = (*said, *first.notes, *warned)
    named = tuple((cell.folder.path.name, state) for cell, state in zip(cells, states, strict=False))
    return Plan(facts, named, shown_examples(first), notes, cost_numbers(costs, first.steps))


def _reported(config: CompareConfig, cells: Sequence[Cell], workshop: Workshop) -> list[Cell]:
    """Return the runs after tuning, with the seeds of the table; of the first value where none is chosen yet."""
    output = Path(config.output) if config.output is not None else None
    chosen = read_study(output).chosen if output is not None and config.tune and is_study(output) else {}
    lines: dict[str, Cell] = {}
    for cell in cells:
        if chosen.get(cell.label, words(cell.tried)) == words(cell.tried):
            lines.setdefault(cell.label, cell)
    tried = {cell.seed for cell in cells}
    seeds = [seed for seed in config.seeds if seed not in tried]
    return [cell.reported(seed, config.evaluation.metrics, workshop) for cell in lines.values() for seed in seeds]


def _count(cells: Sequence[Cell], later: int) -> str:
    labels, tried, seeds = ({getattr(cell, name) for cell in cells} for name in ("label", "tried", "seed"))
    values = f", {len(tried)} values tried for each" if len(tried) > 1 else ""
    runs = f"; {later} more of the values that win, with the seeds of the table" if later else ""
    steps = sum(cell.prepared.steps for cell in cells)
    return f"{len(cells)}: {len(labels)} objectives, {len(seeds)} seeds{values}; {steps:,} steps in all{runs}"


def _time(config: CompareConfig, cells: Sequence[Cell], states: Sequence[str], costs: Sequence[Estimate]) -> str:
    """Say how long the missing cells will train: measured on finished cells where there are any."""
    missing = [index for index, state in enumerate(states) if state != "done"]
    spent = [
        (cell.folder.status().get("seconds", 0.0), cost.seconds or 0.0)
        for cell, cost, state in zip(cells, costs, states, strict=True)
        if state == "done"
    ]
    guessed = sum(costs[index].seconds or 0.0 for index in missing)
    measured = sum(seconds for seconds, _ in spent)
    if measured:
        guessed *= measured / sum(seconds for _, seconds in spent)
    jobs = (config.execution.jobs or 1) if executor_name(config) != "inline" else 1
    if not missing:
        return "none: every cell is done"
    how = "measured on finished cells" if measured else "an estimate from one matrix product"
    at_once = f", {jobs} at a time" if jobs > 1 else ""
    return f"about {duration(guessed / min(jobs, len(missing)))} for {len(missing)} cells{at_once}; {how}"
