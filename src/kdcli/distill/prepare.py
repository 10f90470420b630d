"""Builds and checks the parts of a run, cheapest checks first; no weight is read."""

from dataclasses import dataclass, replace
from typing import Any

from kdcli.config.schema import DistillConfig
from kdcli.config.trackers import check_trackers
from kdcli.data.tokenize import TokenDataset, overlap_note
from kdcli.distill.compat import (
    own_words_note,
    refuse_across,
    refuse_coarse,
    refuse_features,
    refuse_pair,
    refuse_served,
    server_of,
    view_of,
)
from kdcli.distill.fingerprint import fingerprint_of, guest_code, source_identity
from kdcli.distill.validation import ValidationPlan, validation_plan
from kdcli.errors import InputError, UsageError
from kdcli.evaluation.lm_eval.run import check_tasks
from kdcli.loading import splits
from kdcli.loading.info import ModelPair
from kdcli.loading.session import Session, check_data_path
from kdcli.loading.splits import rows_of_teacher, watching_warning
from kdcli.losses.base import DistillLoss
from kdcli.losses.build import build_objective, spec_of
from kdcli.losses.testing.contract import try_loss
from kdcli.metrics.describe import describe
from kdcli.models.adapters import check_adapter
from kdcli.models.devices import Device, prepare
from kdcli.models.toolchain import check_toolchain
from kdcli.registry.spec import parse_objective
from kdcli.sources.base import Source, SourceContext, StepBatches
from kdcli.sources.build import build_source, tail_of


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
        corpus: rows of the second corpus, if the source reads one.
        teacher_rows: the training rows as a teacher of another tokenizer reads them; None where it reads as usual.
        watched: what is measured while training, if anything.
    """

    config: DistillConfig
    loss: DistillLoss
    label: str
    pair: ModelPair
    dataset: TokenDataset
    test: TokenDataset | None
    device: Device
    steps: int
    identity: dict[str, Any]
    source: Source
    corpus: TokenDataset | None = None
    watched: ValidationPlan | None = None
    teacher_rows: TokenDataset | None = None

    @property
    def needs_teacher(self) -> bool:
        """Whether training reads the teacher's weights."""
        return self.loss.needs().anything_of_teacher

    def windows(self, pad_id: int = 0, rank: int = 0, world: int = 1, **models: Any) -> StepBatches:
        """Return the training windows.

        Args:
            pad_id: token to pad with.
            rank: this process' number.
            world: processes in all.
            models: further fields of the ground, where sequences are written and not only counted.
        """
        context = SourceContext(
            self.dataset, self.config.train, pad_id, rank, world, vocab=self.pair.vocab, corpus=self.corpus,
            autocast=self.device.autocast, teacher_rows=self.teacher_rows, teacher_vocab=self.pair.teacher_vocab,
        )  # fmt: skip
        return self.source.open(replace(context, **models))

    @property
    def notes(self) -> list[str]:
        """What was detected, cut and left out in models and data."""
        held_out = self.test.notes if self.test is not None else ()
        writers = () if self.source.needs().fixed else (self.pair.reader, *filter(None, [self.pair.teacher]))
        writing = [note for one in writers for note in one.writing_notes]
        return [*dict.fromkeys([*self.pair.notes, *writing]), *self.dataset.notes, *held_out]

    @property
    def warnings(self) -> list[str]:
        """What may make the numbers mean less than they seem to."""
        overlap = overlap_note(self.dataset, self.test) if self.test is not None else None
        watching = watching_warning(self.config, follows=self.source.needs().monitor != "")
        return [found for found in (overlap, own_words_note(self.loss, self.source), watching) if found]


def prepare_run(config: DistillConfig, session: Session, device: Device | None = None) -> Prepared:
    """Check everything that can be checked before weights are read.

    Args:
        config: the run's settings.
        session: parts shared with other runs.
        device: what to plan for, which need not be here; None for what the settings name.

    Raises:
        UsageError: an unknown objective, source or metric, or something missing.
        InputError: data, tokenizers or model folders that cannot be used.
        MachineError: the device is missing.
    """
    loss, label, source = objective_of(config.loss)
    if guest_code(loss) is not None:
        try_loss(loss, spec_of(loss))
    for name in config.evaluation.metrics:
        describe(name)
    refuse_pair(config, loss, source, label)
    check_data_path(config.data.train, "--data")
    split = config.evaluation.split
    measured = splits.measures_after_training(config.data, split)
    if measured:
        splits.check_measured(config.data, split)
    _check_tasks(config, measured=measured)
    refuse_served(config, source, label, measured=measured)
    check_trackers(config.train.report_to)
    here = device is None
    device = device or prepare(config.hardware)
    if config.hardware.compile and here:
        check_toolchain(device.device.type)
    pair = session.pair(config.student, config.teacher, config.teacher_quantization, server_of(config), across=True)
    refuse_across(config, loss, source, label, pair)
    check_adapter(config.lora, student_is_random=pair.student_is_random)
    dataset = splits.training_rows(config.data, pair.reader, session)
    test = splits.measured_rows(config.data, split, pair.reader, session) if measured else None
    corpus = splits.corpus_rows(config.data, pair.reader, session) if source.needs().corpus else None
    reads = loss.needs().anything_of_teacher or source.needs().teacher
    theirs = rows_of_teacher(pair, dataset, config.data, session) if reads else None
    steps = _opened(source, SourceContext(dataset, config.train, pad_id=0, corpus=corpus)).total_steps
    view = None
    if loss.needs().anything_of_teacher and pair.teacher is not None:
        refuse_features(loss, label, pair, config.teacher_cache)
        fixed = source.needs().fixed
        view = view_of(config.teacher_cache, pair.teacher, config.data, config.hardware, device, fixed=fixed)
        refuse_coarse(view, loss, label)
    watched = validation_plan(config, pair.reader, session)
    ending = None
    if watched is not None and (watched.config.patience is not None or source.needs().monitor != ""):
        ending = watched.identity
    seen = str(view) if view is not None else None
    identity = fingerprint_of(config, label, loss, pair, dataset, device, steps, seen, ending, source)
    identity |= source_identity(source, corpus, config, pair)
    return Prepared(config, loss, label, pair, dataset, test, device, steps, identity, source, corpus, watched, theirs)


def _opened(source: Source, context: SourceContext) -> StepBatches:
    windows = source.open(context)
    if not isinstance(windows, StepBatches):
        what = f"open() must return {StepBatches.__module__}.{StepBatches.__name__}, got {type(windows).__name__}"
        raise InputError("PLUG-10", what, where=f"source {tail_of(source)[1:]}", fix="mend the plug-in")
    return windows


def _check_tasks(config: DistillConfig, *, measured: bool) -> None:
    if not config.benchmarks.tasks:
        return
    if not measured:
        where, fix = "benchmarks.tasks", "give held-out rows with --eval-data, or run kd eval RUN --tasks afterwards"
        raise UsageError("CLI-20", "nothing is measured after training", where=where, fix=fix)
    check_tasks(config.benchmarks.tasks)


def objective_of(text: str) -> tuple[DistillLoss, str, Source]:
    """Return the loss a spec string names, its canonical spelling, and its source.

    Raises:
        UsageError: what in the string is not known.
    """
    spec = parse_objective(text)
    loss, source = build_objective(spec), build_source(spec.source)
    return loss, f"{spec_of(loss)}{tail_of(source)}", source
