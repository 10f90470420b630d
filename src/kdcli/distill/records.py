"""Records of runs and references."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdcli.evaluation.records import EvalRecord

BEFORE, TEACHER, MODEL = "before", "teacher", "model"
CONTENDER = "contender"
"""Roles of lines: the student before training, the teacher, a model trained elsewhere, and what is compared."""


@dataclass(frozen=True)
class RunRecord:
    """One finished training run.

    Args:
        folder: the run folder.
        loss: the objective in canonical form.
        seed: training seed.
        steps: optimizer steps.
        tokens: response tokens trained on.
        seconds: time in training steps, over all resumes.
        peak_bytes: peak memory in training.
        identity: what makes this experiment this experiment.
        evaluation: the evaluation on held-out rows, if there was one.
        already_done: whether the folder held the finished run before.
    """

    folder: Path
    loss: str
    seed: int
    steps: int
    tokens: int
    seconds: float
    peak_bytes: int
    identity: dict[str, Any] = field(repr=False)
    evaluation: EvalRecord | None = None
    already_done: bool = False

    @property
    def model(self) -> Path:
        """The folder of the trained student."""
        return self.folder / "model"


@dataclass(frozen=True)
class Reference:
    """A model that a comparison did not train, measured on its rows.

    Args:
        role: "before" for the student before training, "teacher", or "model" for one trained elsewhere.
        label: what its line is called.
        found: training seed -> evaluation of a student that was made at random with this seed; a model that lies
            in a folder has one evaluation, under None.
        parameters: of the model; None if not known.
    """

    role: str
    label: str
    found: Mapping[int | None, EvalRecord]
    parameters: int | None = None
