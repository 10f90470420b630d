"""The inputs and results of a training."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from kdcli.config.sections import HardwareConfig, TrainConfig
from kdcli.events import Report
from kdcli.losses.base import DistillLoss
from kdcli.models.devices import Device
from kdcli.models.load import LanguageModel
from kdcli.sources.base import StepBatches
from kdcli.students.supernet_spec import SupernetSpec
from kdcli.teachers.base import Teacher
from kdcli.training.placement import Side

# What looks at a student while it is trained, as the loop sees it.


@runtime_checkable
class Monitor(Protocol):
    """Measures the student between steps; it must leave weights, modes and random generators as they are.

    It keeps no state of its own: what it knows follows from the lines of ``metrics.jsonl``, which a resumed
    run cuts back to its checkpoint.
    """

    @property
    def ends(self) -> bool:
        """Whether training is to end now."""
        ...

    def recall(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Take in the lines of the steps done so far."""
        ...

    def due(self, step: int) -> bool:
        """Whether the student is to be measured after a step."""
        ...

    def evaluate_if_due(self, step: int) -> dict[str, Any] | None:
        """Return what to log about a step under ``evaluation``, None where it is not due."""
        ...


@dataclass(frozen=True)
class TrainJob:
    """Everything one run trains with.

    Args:
        student: the model that learns; changed in place.
        teacher: what it learns from; None when the objective needs none.
        loss: the objective.
        windows: yields the micro-batches of each optimizer step.
        vocab: real ids shared by both models.
        train: settings of the loop.
        device: where it computes.
        folder: the run folder; it exists.
        identity: what must be equal for a run to be continued.
        report: called with events.
        resume_command: the command that goes on, printed when stopped.
        monitor: measures the student between steps; asked on the first rank only.
        hardware: how the models lie among several processes, and how long one waits for the others.
        generates_with: models that write sequences of a window.
        evaluates_with: models that the monitor reads.
        supernet: how several sizes of the student are trained together; None for one size.
    """

    student: LanguageModel
    teacher: Teacher | None
    loss: DistillLoss
    windows: StepBatches
    vocab: int
    train: TrainConfig
    device: Device
    folder: Path
    identity: dict[str, Any]
    report: Report
    resume_command: str
    monitor: Monitor | None = None
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    generates_with: frozenset[Side] = frozenset()
    evaluates_with: frozenset[Side] = frozenset({"student"})
    supernet: SupernetSpec | None = None


@dataclass(frozen=True)
class TrainResult:
    """What a finished training cost.

    Args:
        steps: optimizer steps.
        tokens: response tokens trained on.
        student_tokens: tokens that went through the student's trunk, prompts included.
        seconds: time in steps.
        peak_bytes: peak memory of the device, or of the process on a CPU.
        generated_tokens: tokens that were generated to train on.
        generation_seconds: the part of ``seconds`` that this took.
        effort: tokens that went through the models for it, as ``TokenCounts`` counts them; None if not recorded.
        made_tokens: tokens of a text that was written before the first step.
        made_effort: what writing it takes, whoever did it and whenever.
        files: log -> sha256 of what was written into it.
    """

    steps: int
    tokens: int
    student_tokens: int
    seconds: float
    peak_bytes: int
    generated_tokens: int = 0
    generation_seconds: float = 0.0
    effort: dict[str, int] | None = None
    made_tokens: int = 0
    made_effort: dict[str, int] | None = None
    files: dict[str, str] = field(default_factory=dict)
