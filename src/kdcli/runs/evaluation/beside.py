"""What is measured of a model beside its scores on rows: benchmarks, and what it costs on this machine."""

from dataclasses import dataclass, field, replace

from kdcli.config import EvalConfig
from kdcli.engine.devices import Device
from kdcli.engine.events import Report
from kdcli.models.load import load_model
from kdcli.runs.evaluation.benchmarks import Benchmarked, load_tasks, run_tasks
from kdcli.runs.evaluation.edge import measure_edge
from kdcli.runs.evaluation.harness import Harness, LmEval, Tasks
from kdcli.runs.folder import model_of
from kdcli.runs.records import Edge, EvalRecord

TASKS = "tasks"
"""Where a record's protocol says what its benchmarks' numbers follow from; known once they have run."""


@dataclass(frozen=True)
class Beside:
    """What was measured beside the rows.

    Args:
        benchmarked: scores of tasks.
        edge: what the model costs here; None where that was not asked for.
    """

    benchmarked: Benchmarked = field(default_factory=lambda: Benchmarked((), {}, 0, {}))
    edge: Edge | None = None

    def join(self, record: EvalRecord) -> EvalRecord:
        """Return the record with this in it."""
        found = self.benchmarked
        protocol = record.protocol | ({TASKS: found.protocol} if found.protocol else {})
        estimates = record.estimates | found.estimates
        infos = record.infos + found.infos
        return replace(
            record, estimates=estimates, infos=infos, protocol=protocol, edge=self.edge, documents=found.values
        )


@dataclass(frozen=True)
class Ready:
    """What will run the tasks, and the tasks."""

    harness: Harness
    tasks: Tasks


def asks_beside(config: EvalConfig) -> bool:
    """Whether anything is to be measured beside the rows."""
    return config.edge.measure or bool(config.benchmarks.tasks)


def ready_beside(config: EvalConfig) -> Ready | None:
    """Return the loaded tasks, None without any; what is wrong with them is found before any weight is read.

    Raises:
        UsageError: BENCH-01, lm-evaluation-harness is not installed.
        InputError: BENCH-02, no such task.
        MachineError: BENCH-04, a task's documents cannot be had.
    """
    if not config.benchmarks.tasks:
        return None
    harness = LmEval()
    return Ready(harness, load_tasks(harness, config.benchmarks))


def measure_beside(
    config: EvalConfig, model: str, device: Device, report: Report, ready: Ready | None = None
) -> Beside:
    """Measure what the settings ask for beside the rows; the model is loaded for it, and let go.

    Args:
        config: what to measure.
        model: run or model folder.
        device: where to compute.
        report: told how far it is.
        ready: the tasks, and what runs them; None without tasks.

    Raises:
        KDError: the model or a task cannot be used.
    """
    path = model_of(model)
    edge = measure_edge(path, config.edge, device, report) if config.edge.measure else None
    if ready is None:
        return Beside(edge=edge)
    loaded = load_model(path, device=device.device, role="teacher", dtype=device.compute)
    return Beside(run_tasks(loaded, ready.tasks, config.benchmarks, report, ready.harness), edge)
