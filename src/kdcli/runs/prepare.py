"""From settings to checked parts, cheapest checks first; no weight is read here."""

from dataclasses import dataclass
from typing import Any

from kdcli.config import DistillConfig
from kdcli.data.dataset import TokenDataset, overlap_note
from kdcli.engine.devices import Device, prepare
from kdcli.errors import UsageError
from kdcli.losses.base import DistillLoss
from kdcli.losses.build import build_objective, spec_of
from kdcli.metrics.describe import describe
from kdcli.models.adapter import check_adapter
from kdcli.registry import SOURCES
from kdcli.runs import splits
from kdcli.runs.identity import identity_of
from kdcli.runs.monitor import Watched, watched_by
from kdcli.runs.teachers import refuse_coarse, view_of
from kdcli.runs.workshop import Pair, Workshop, check_data_path
from kdcli.sources.base import Ground, Source, Windows
from kdcli.spec import Term, parse_objective

_DATASET = Term("dataset")


@dataclass(frozen=True)
class Prepared:
    """A run, ready to load weights.

    Args:
        config: its settings.
        loss: the objective.
        label: the objective in canonical form, source included.
        pair: student and teacher.
        dataset: training rows.
        test: held-out rows, if there are any.
        device: where it computes.
        steps: optimizer steps.
        identity: what makes this experiment this experiment.
        source: where training sequences come from.
        watched: what is measured while training, if anything.
    """

    config: DistillConfig
    loss: DistillLoss
    label: str
    pair: Pair
    dataset: TokenDataset
    test: TokenDataset | None
    device: Device
    steps: int
    identity: dict[str, Any]
    source: Source
    watched: Watched | None = None

    @property
    def needs_teacher(self) -> bool:
        """Whether training reads the teacher's weights."""
        return self.loss.needs().teacher

    def windows(self, pad_id: int = 0, rank: int = 0, world: int = 1) -> Windows:
        """Return the training windows."""
        return self.source.open(Ground(self.dataset, self.config.train, pad_id, rank, world))

    @property
    def notes(self) -> list[str]:
        """What was detected, cut and left out in models and data."""
        held_out = self.test.notes if self.test is not None else ()
        return [*self.pair.notes, *self.dataset.notes, *held_out]

    @property
    def warnings(self) -> list[str]:
        """What may make the numbers mean less than they seem to."""
        found = overlap_note(self.dataset, self.test) if self.test is not None else None
        return [found] if found else []


def prepare_run(config: DistillConfig, workshop: Workshop) -> Prepared:
    """Check everything that can be checked before weights are read.

    Raises:
        UsageError: an objective, source or metric nobody knows, or something missing.
        InputError: data, tokenizers or model folders that cannot be used.
        MachineError: the device is missing.
    """
    loss, label, source = objective_of(config.loss)
    for name in config.evaluation.metrics:
        describe(name)
    if loss.needs().teacher and config.teacher is None:
        raise UsageError("CLI-20", f"{label} learns from a teacher", where="--teacher", fix="give a folder or a hub id")
    check_data_path(config.data.train, "--data")
    split = config.evaluation.split
    measured = splits.measures_after_training(config.data, split)
    if measured:
        splits.check_measured(config.data, split)
    device = prepare(config.hardware)
    pair = workshop.pair(config.student, config.teacher)
    check_adapter(config.lora, student_is_random=pair.student_is_random)
    dataset = splits.training_rows(config.data, pair.reader, workshop)
    test = splits.measured_rows(config.data, split, pair.reader, workshop) if measured else None
    steps = source.open(Ground(dataset, config.train, pad_id=0)).total_steps
    seen = None
    if loss.needs().teacher and pair.teacher is not None:
        seen = view_of(config.teacher_cache, pair.teacher, config.data, config.hardware, device)
        refuse_coarse(seen, loss, label)
    watched = watched_by(config, pair.reader, workshop)
    ending = watched.identity if watched is not None and watched.config.patience is not None else None
    identity = identity_of(config, label, loss, pair, dataset, device, steps, seen, ending)
    return Prepared(config, loss, label, pair, dataset, test, device, steps, identity, source, watched)


def objective_of(text: str) -> tuple[DistillLoss, str, Source]:
    """Return the loss a spec string names, its canonical spelling, and its source.

    Raises:
        UsageError: what in the string is not known.
    """
    spec = parse_objective(text)
    loss = build_objective(spec)
    origin = spec.source or _DATASET
    name = SOURCES.canonical(origin.name)
    if name == "dataset" and origin.options:
        raise UsageError("SPEC-01", "the source dataset takes no options", where=text, fix="leave @dataset out")
    tail = "" if name == "dataset" else f"@{origin}"
    return loss, f"{spec_of(loss)}{tail}", SOURCES.resolve(origin.name)(**origin.options)
