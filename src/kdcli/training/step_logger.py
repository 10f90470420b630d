"""Logs each step to metrics.jsonl, to trackers, and as events."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import filter_trackers
from accelerate.utils import LoggerType

from kdcli.config.names import nearest
from kdcli.errors import MachineError, UsageError
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


def _start(accelerator: Accelerator, names: Sequence[str]) -> None:
    try:
        accelerator.init_trackers("kd")
    except Exception as error:  # each tracker raises what it likes
        what = f"{', '.join(names)} cannot be started: {type(error).__name__}: {one_line(str(error), 200)}"
        fix = "make it work in Python first, or leave train.report_to out"
        raise MachineError("TRACK-03", what, where="train.report_to", fix=fix) from error


@contextmanager
def logging_steps(training: TrainJob, accelerator: Accelerator, state: State) -> Iterator[StepLogger]:
    """Open logs and trackers for a run that goes on from a state, and close them after it."""
    metrics_log = MetricsLog(training.folder, *state.marks) if accelerator.is_main_process else NullMetricsLog()
    try:
        if training.train.report_to:
            _start(accelerator, training.train.report_to)
        try:
            yield StepLogger(training, accelerator, metrics_log)
        finally:
            accelerator.end_training()
    finally:
        metrics_log.close()


# Trackers of experiments, looked for before anything is trained.


_PACKAGES = {"comet_ml": "comet-ml"}
"""Tracker -> the package that brings it, where the names differ."""


def check_trackers(names: Sequence[str]) -> None:
    """Refuse a tracker that accelerate does not know, or that is not installed.

    Args:
        names: what ``train.report_to`` names.

    Raises:
        UsageError: TRACK-01, an unknown name.
        MachineError: TRACK-02, its package is not installed.
    """
    known = [str(kind.value) for kind in LoggerType]
    for name in names:
        if name not in known:
            near = nearest(name, {one: one for one in known})
            fix = f"did you mean {near}?" if near else f"there are {', '.join(known)}"
            raise UsageError("TRACK-01", f'no tracker "{one_line(name, 60)}"', where="train.report_to", fix=fix)
        if not filter_trackers([name], "."):
            fix = f"pip install {_PACKAGES.get(name, name)}"
            raise MachineError("TRACK-02", f"{name} is not installed", where="train.report_to", fix=fix)
