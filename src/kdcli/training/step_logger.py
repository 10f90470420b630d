"""Logs each step to metrics.jsonl, to trackers, and as events."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from kdcli.errors import MachineError
from kdcli.events import Event
from kdcli.text import one_line
from kdcli.training.checkpoint import State
from kdcli.training.job import TrainJob
from kdcli.training.metrics_log import MetricsLog, NullMetricsLog


class StepLogger:
    """Logs steps on rank 0; does nothing on the others.

    Args:
        training: the run.
        accelerator: what holds the trackers.
        metrics_log: the run's metrics file.
    """

    def __init__(self, training: TrainJob, accelerator: Accelerator, metrics_log: MetricsLog) -> None:
        self._report, self._total = training.report, training.windows.total_steps
        self._accelerator, self.metrics_log = accelerator, metrics_log

    def tell(
        self, state: State, values: dict[str, float], timing: dict[str, float], seen: dict[str, Any] | None
    ) -> None:
        """Log one step.

        Args:
            state: where the run is after it.
            values: what was measured in it; a function of the run's settings and this machine's arithmetic.
            timing: the seconds it took, which are not.
            seen: what the monitor measured after it, if it was due.
        """
        speed = {"tokens_per_second": values["tokens"] / timing["seconds"]}
        if "generation_seconds" in timing:
            speed["generated_per_second"] = values["generated_tokens"] / timing["generation_seconds"]
        if not self._accelerator.is_main_process:
            return
        line = {"step": state.step, **values, **({"evaluation": seen} if seen else {})}
        self.metrics_log.write(line, {"step": state.step, **timing})
        measured = {f"eval/{name}": value for name, value in (seen or {}).get("scores", {}).items() if value}
        self._accelerator.log({**values, **measured}, step=state.step)
        shown = {**values, **speed}
        self._report(Event("progress", "training", done=state.step, total=self._total, values=shown))


def _start(accelerator: Accelerator, names: Sequence[str], training: TrainJob) -> None:
    shown = {name: value if isinstance(value, bool | int | float) else str(value)
             for name, value in training.identity.items()}  # fmt: skip
    try:
        accelerator.init_trackers("kd", config=shown, init_kwargs=named_run(names, training.folder))
    except Exception as error:  # each tracker raises what it likes
        what = f"{', '.join(names)} cannot be started: {type(error).__name__}: {one_line(str(error), 200)}"
        fix = "make it work in Python first, or leave train.report_to out"
        raise MachineError("TRACK-03", what, where="train.report_to", fix=fix) from error


def named_run(names: Sequence[str], folder: Path) -> dict[str, dict[str, str]]:
    """Return how each tracker is to name what a folder holds; wandb writes into it, too.

    Args:
        names: trackers.
        folder: of the run, or of the study.
    """
    name = folder.resolve().name
    how = {
        "trackio": {"name": name},
        "wandb": {"name": name, "dir": str(folder)},
        "mlflow": {"run_name": name},
    }
    return {one: how[one] for one in names if one in how}


@contextmanager
def logging_steps(training: TrainJob, accelerator: Accelerator, state: State) -> Iterator[StepLogger]:
    """Open logs and trackers for a run that goes on from a state, and close them after it."""
    metrics_log = MetricsLog(training.folder, *state.marks) if accelerator.is_main_process else NullMetricsLog()
    try:
        if training.train.report_to:
            _start(accelerator, training.train.report_to, training)
        try:
            yield StepLogger(training, accelerator, metrics_log)
        finally:
            for tracker in accelerator.trackers:
                tracker.finish()
    finally:
        metrics_log.close()
