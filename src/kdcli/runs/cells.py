"""The cells of a comparison: which runs it is made of, where each lies, and how far it is."""

import re
from dataclasses import dataclass
from pathlib import Path

from kdcli.config import CompareConfig, DistillConfig
from kdcli.errors import KDError, UsageError
from kdcli.runs.folder import RunFolder
from kdcli.runs.identity import short_hash
from kdcli.runs.plan import folder_state
from kdcli.runs.prepare import Prepared, objective_of, prepare_run
from kdcli.runs.workshop import Workshop

CELLS = "cells"


@dataclass(frozen=True)
class Cell:
    """One run of a comparison.

    Args:
        label: the objective in canonical form.
        seed: training seed.
        prepared: the run, checked.
        folder: its run folder, named after what the run is, so that equal settings meet again.
    """

    label: str
    seed: int
    prepared: Prepared
    folder: RunFolder

    @property
    def name(self) -> str:
        """What to call it in progress lines."""
        return f"{self.label} · seed {self.seed}"

    def state(self) -> str:
        """Say how far it is: done, to resume, to run, or why it cannot go on."""
        try:
            return folder_state(self.folder, self.prepared)
        except KDError as error:
            return str(error)


def make_cells(config: CompareConfig, workshop: Workshop) -> list[Cell]:
    """Check a comparison's settings and name its cells, objective by objective.

    Raises:
        UsageError: fewer than two objectives, one given twice, or a baseline that is not among them.
        KDError: what any of its runs would stop at before weights are read.
    """
    labels = [objective_of(text)[1] for text in config.losses]
    if len(labels) < 2:
        raise UsageError(
            "CLI-18", f"needs two objectives or more, got {len(labels)}", where="kd compare", fix="or use kd distill"
        )
    for label, text in zip(labels, config.losses, strict=True):
        if labels.count(label) > 1:
            raise UsageError("CLI-08", f"{label} is given twice", where=f'objective "{text}"', fix="leave one out")
    baseline_of(config, labels)
    root = Path(config.output) if config.output is not None else None
    cells = []
    for label, text in zip(labels, config.losses, strict=True):
        for seed in config.seeds:
            prepared = prepare_run(_run_config(config, text, seed), workshop)
            cells.append(Cell(label, seed, prepared, _folder(root, label, seed, prepared)))
    return cells


def baseline_of(config: CompareConfig, labels: list[str]) -> str:
    """Return the label that differences are taken to: the one asked for, else the first."""
    if config.baseline is None:
        return labels[0]
    wanted = objective_of(config.baseline)[1]
    if wanted not in labels:
        raise UsageError(
            "CLI-18",
            f'"{config.baseline}" is not among the objectives',
            where="--baseline",
            fix=f"choose one of {', '.join(labels)}",
        )
    return wanted


def slug(label: str) -> str:
    """Return a label as part of a folder's name.

    >>> slug("0.5*ce+0.5*akl:mu=0.6")
    '0.5ce-0.5akl-mu0.6'
    """
    short = label.replace("*", "").replace("=", "")
    return re.sub(r"[^A-Za-z0-9.]+", "-", short).strip("-.")[:40] or "objective"


def _run_config(config: CompareConfig, loss: str, seed: int) -> DistillConfig:
    return DistillConfig(
        teacher=config.teacher,
        student=config.student,
        loss=loss,
        data=config.data,
        train=config.train.model_copy(update={"seed": seed}),
        hardware=config.hardware,
        evaluation=config.evaluation,
    )


def _folder(root: Path | None, label: str, seed: int, prepared: Prepared) -> RunFolder:
    name = f"{slug(label)}-s{seed}-{short_hash(prepared.identity)}"
    return RunFolder((root or Path()) / CELLS / name)
