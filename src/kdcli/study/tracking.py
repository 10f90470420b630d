"""Writes the table of a study to experiment trackers."""

import importlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from kdcli.comparison.records import Comparison
from kdcli.errors import MachineError
from kdcli.text import one_line
from kdcli.training.step_logger import named_run

TABLE = "table.md"
_FOREIGN = re.compile(r"[^\w\-. :/]")
"""What the name of a number may not hold in mlflow."""


def log_table(names: Sequence[str], folder: Path, found: Comparison) -> None:
    """Log a study's table as a run of its own: means and intervals as numbers, and the table where one can be shown.

    Args:
        names: trackers, as in ``train.report_to``.
        folder: of the study, whose name the run bears.
        found: the comparison.

    Raises:
        MachineError: TRACK-03, a tracker refuses; the study itself is complete.
    """
    try:
        accelerator = Accelerator(cpu=True, log_with=list(names), project_dir=folder)
        accelerator.init_trackers("kd", config={"baseline": found.baseline}, init_kwargs=named_run(names, folder))
        accelerator.log(numbers(found), step=0)
        for tracker in accelerator.trackers:
            if tracker.name in _SHOWN:
                _SHOWN[tracker.name](tracker.tracker, found, folder)
        accelerator.end_training()
    except Exception as error:  # each tracker raises what it likes
        what = f"the table was not logged: {type(error).__name__}: {one_line(str(error), 200)}"
        fix = "make the tracker work in Python first, or leave train.report_to out; the study is complete"
        raise MachineError("TRACK-03", what, where="train.report_to", fix=fix) from error


def numbers(found: Comparison) -> dict[str, float]:
    """Return "objective/score" -> mean, and its ends as "objective/score/low" and "high" where they are known."""
    values: dict[str, float] = {}
    for row in (*found.references, *found.rows):
        for name, estimate in row.scores.items():
            key = _FOREIGN.sub("_", f"{row.label}/{name}")
            ends = {"/low": estimate.low, "/high": estimate.high}
            values[key] = float(estimate.mean)
            values |= {f"{key}{end}": float(value) for end, value in ends.items() if value is not None}
    return values


def columns(found: Comparison) -> tuple[list[str], list[list[Any]]]:
    """Return the heads and lines of the table: one line for each objective and reference model."""
    names = [info.name for info in found.scores]
    lines = [
        [row.label, *(float(row.scores[name].mean) if name in row.scores else None for name in names)]
        for row in (*found.references, *found.rows)
    ]
    return ["objective", *names], lines


def _wandb(run: Any, found: Comparison, folder: Path) -> None:
    wandb = importlib.import_module("wandb")

    heads, lines = columns(found)
    run.log({"table": wandb.Table(columns=heads, data=lines)}, step=1)


def _trackio(run: Any, found: Comparison, folder: Path) -> None:
    import pandas

    trackio = importlib.import_module("trackio")

    heads, lines = columns(found)
    run.log({"table": trackio.Table(dataframe=pandas.DataFrame(lines, columns=heads))}, step=1)


def _mlflow(run: Any, found: Comparison, folder: Path) -> None:
    mlflow = importlib.import_module("mlflow")

    mlflow.log_artifact(str(folder / TABLE))


def _tensorboard(writer: Any, found: Comparison, folder: Path) -> None:
    writer.add_text("table", (folder / TABLE).read_text(encoding="utf-8"))


_SHOWN: dict[str, Callable[[Any, Comparison, Path], None]] = {
    "wandb": _wandb,
    "trackio": _trackio,
    "mlflow": _mlflow,
    "tensorboard": _tensorboard,
}
"""Tracker -> how it is given a table beside numbers."""
