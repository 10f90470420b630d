"""What is measured of a model beside its scores on rows: benchmarks, and what it costs on this machine."""

from dataclasses import dataclass, field, replace

from kdcli.config import EvalConfig
from kdcli.engine.devices import Device
from kdcli.engine.events import Report
from kdcli.models.load import load_model
from kdcli.runs.evaluation.benchmarks import Benchmarked, Harness, LmEval, benchmark
from kdcli.runs.evaluation.edge import measure_edge
from kdcli.runs.folder import model_of
from kdcli.runs.records import Edge, EvalRecord


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
        protocol = record.protocol | ({"tasks": found.protocol} if found.protocol else {})
        estimates = record.estimates | found.estimates
        return replace(record, estimates=estimates, infos=record.infos + found.infos, protocol=protocol, edge=self.edge)


def asks_beside(config: EvalConfig) -> bool:
    """Whether anything is to be measured beside the rows."""
    return config.edge.measure or bool(config.benchmarks.tasks)


def ready_beside(config: EvalConfig) -> Harness | None:
    """Return what runs the tasks, None without tasks; found out before any work is done.

    Raises:
        UsageError: BENCH-01, lm-evaluation-harness is not installed.
    """
    return LmEval() if config.benchmarks.tasks else None


def measure_beside(
    config: EvalConfig, model: str, device: Device, report: Report, harness: Harness | None = None
) -> Beside:
    """Measure what the settings ask for beside the rows; the model is loaded for it, and let go.

    Args:
        config: what to measure.
        model: run or model folder.
        device: where to compute.
        report: told how far it is.
        harness: what runs the tasks.

    Raises:
        KDError: the model or a task cannot be used.
    """
    path = model_of(model)
    edge = measure_edge(path, config.edge, device, report) if config.edge.measure else None
    if not config.benchmarks.tasks:
        return Beside(edge=edge)
    loaded = load_model(path, device=device.device, role="teacher", dtype=device.compute)
    return Beside(benchmark(loaded, config.benchmarks, report, harness), edge)
