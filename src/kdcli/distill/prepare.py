"""Builds and checks the parts of a run, cheapest checks first; no weight is read."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from kdcli.config.schema import DistillConfig, EvalConfig
from kdcli.config.sections import BenchmarkConfig, DataConfig, EvalSettings, HardwareConfig, ServerConfig, TrainConfig
from kdcli.config.trackers import check_trackers
from kdcli.data.tokenize import TokenDataset, overlap_note
from kdcli.distill.compat import Combination, check, check_rows, faults_of, own_words_note
from kdcli.distill.fingerprint import fingerprint, guest_code
from kdcli.distill.validation import ValidationPlan, validation_plan
from kdcli.errors import UsageError, raise_all
from kdcli.evaluation.classes import class_settings
from kdcli.evaluation.lm_eval.run import check_tasks
from kdcli.loading import splits
from kdcli.loading.info import ModelInfo, ModelPair
from kdcli.loading.session import Session, check_data_path, classifies
from kdcli.loading.splits import rows_of_teacher, watching_warning
from kdcli.losses.base import DistillLoss
from kdcli.losses.build import build_objective
from kdcli.losses.testing.contract import try_loss
from kdcli.metrics.describe import describe
from kdcli.models.devices import Device, prepare
from kdcli.models.toolchain import check_toolchain
from kdcli.registry.build import spec_of
from kdcli.registry.spec import parse_objective
from kdcli.remote.address import address_of, is_url, served_model
from kdcli.sources.base import Source, SourceContext, StepBatches
from kdcli.sources.build import build_source, opened, tail_of
from kdcli.teachers.cache_files import read_key
from kdcli.teachers.cached import TeacherView, cache_key, check_key
from kdcli.text import one_line


@dataclass(frozen=True, kw_only=True)
class Prepared(Combination):
    """A run, ready to load weights: everything that its settings name, built.

    Args:
        pair: student and teacher.
        train: how it is trained.
        measuring: how its student is measured, by ``kd eval``, once there is one.
        dataset: training rows.
        test: held-out rows, if there are any.
        device: where it computes.
        steps: optimizer steps.
        identity: what makes this experiment this experiment.
        corpus: rows of the second corpus, if the source reads one.
        teacher_rows: the training rows as a teacher of another tokenizer reads them; None where it reads as usual.
        validation: what is measured while training, if anything.
    """

    pair: ModelPair
    train: TrainConfig
    measuring: EvalConfig
    dataset: TokenDataset
    test: TokenDataset | None
    device: Device
    steps: int
    identity: dict[str, Any]
    corpus: TokenDataset | None = None
    validation: ValidationPlan | None = None
    teacher_rows: TokenDataset | None = None

    def windows(self, pad_id: int = 0, rank: int = 0, world: int = 1, **models: Any) -> StepBatches:
        """Return the training windows.

        Args:
            pad_id: token to pad with.
            rank: this process' number.
            world: processes in all.
            models: further fields of the context, where sequences are written and not only counted.
        """
        context = SourceContext(
            self.dataset, self.train, pad_id, rank, world, vocab=self.pair.vocab, corpus=self.corpus,
            autocast=self.device.autocast, teacher_rows=self.teacher_rows, teacher_vocab=self.pair.teacher_vocab,
        )  # fmt: skip
        return self.source.open(replace(context, **models))

    @property
    def notes(self) -> list[str]:
        """What was detected, cut and left out in models and data."""
        held_out = self.test.notes if self.test is not None else ()
        writers = () if self.source.needs().offline else (self.pair.reader, *filter(None, [self.pair.teacher]))
        writing = [note for one in writers for note in one.writing_notes]
        return [*dict.fromkeys([*self.pair.notes, *writing]), *self.dataset.notes, *held_out]

    @property
    def warnings(self) -> list[str]:
        """What may make the numbers mean less than they seem to."""
        overlap = overlap_note(self.dataset, self.test) if self.test is not None else None
        watching = watching_warning(self.monitor, self.data, follows=self.source.needs().monitor != "")
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
    run, device = combine(config, session, device)
    config = config.model_copy(update={"evaluation": run.evaluation})
    source, pair, data = run.source, run.pair, config.data
    assert pair is not None, "combine looked at both models"
    dataset = splits.training_rows(data, pair.reader, session, images=True)
    test = splits.measured_rows(data, config.evaluation.split, pair.reader, session) if run.is_measured else None
    raise_all(check_rows(run, dataset, test))
    if pair.student_needs_rows:
        run = replace(run, pair=replace(pair, scored_on=dataset))
    corpus = splits.corpus_rows(data, pair.reader, session) if source.needs().corpus else None
    reads = run.needs_teacher or source.needs().teacher
    theirs = rows_of_teacher(pair, dataset, data, session) if reads else None
    steps = opened(source, SourceContext(dataset, config.train, pad_id=0, corpus=corpus)).total_steps
    validation = None
    if config.monitor.every is not None:
        validation = validation_plan(config.monitor, data, config.evaluation, config.teacher, pair.reader, session)
    identity = fingerprint(run, config.train, config.server, device, dataset, corpus, steps, validation)
    return Prepared(
        **{one.name: getattr(run, one.name) for one in fields(run)}, train=config.train, dataset=dataset, test=test,
        measuring=measuring_of(config), device=device, steps=steps, identity=identity, corpus=corpus,
        validation=validation, teacher_rows=theirs,
    )  # fmt: skip


def class_metrics(evaluation: EvalSettings, student: str | None, teacher: str | None) -> EvalSettings:
    """Return the metrics of classes, where a student is a classifier and none was asked for; else the settings given.

    Args:
        evaluation: what is measured.
        student: as named.
        teacher: as named; None for none.
    """
    return class_settings(evaluation, teacher=teacher is not None) if classifies(student) else evaluation


def combine(config: DistillConfig, session: Session, device: Device | None = None) -> tuple[Combination, Device]:
    """Build what a run's settings name, look at both models, and check that all of it goes together.

    Args:
        config: the run's settings.
        session: parts shared with other runs.
        device: as for :func:`prepare_run`.

    Raises:
        KDError: the first fault; the others that could be found with it are in ``also``.
    """
    evaluation = class_metrics(config.evaluation, config.student, config.teacher)
    config = config.model_copy(update={"evaluation": evaluation})
    loss, label, source = objective_of(config.loss)
    if guest_code(loss) is not None:
        try_loss(loss, spec_of(loss))
    for name in config.evaluation.metrics:
        describe(name)
    run = Combination(
        loss=loss, label=label, source=source, teacher=config.teacher, teacher_cache=config.teacher_cache,
        quantization=config.teacher_quantization, data=config.data, hardware=config.hardware, lora=config.lora,
        evaluation=config.evaluation, monitor=config.monitor, pair=None, keep_zeros=config.train.keep_zeros,
    )  # fmt: skip
    others = [
        lambda: check_data_path(config.data.train, "--data"),
        lambda: splits.check_measured(config.data, config.evaluation.split) if run.is_measured else None,
        lambda: _check_tasks(config.benchmarks.tasks, measured=run.is_measured),
        lambda: check_trackers(config.train.report_to),
    ]
    raise_all([*check(run), *faults_of(*others)])
    here = device is None
    device = device or prepare(config.hardware)
    if config.hardware.compile and here:
        check_toolchain(device.device.type)
    pair = session.pair(
        config.student, config.teacher, config.teacher_quantization, server_of(config), across=True, data=config.data
    )
    run = replace(run, pair=pair)
    raise_all(check(run))
    if run.has_several_sizes and config.train.gradient_checkpointing:
        what = "a smaller size has no weights any more when activations would be recomputed"
        fix = "leave train.gradient_checkpointing out"
        raise UsageError("SUP-06", what, where=one_line(pair.student, 80), fix=fix)
    if run.needs_teacher and pair.teacher is not None:
        fixed = source.needs().offline
        view = view_of(config.teacher_cache, pair.teacher, config.data, config.hardware, device, fixed=fixed)
        run = replace(run, view=view)
        raise_all(check(run))
    return run, device


def view_of(
    cache: str | None,
    teacher: ModelInfo,
    data: DataConfig,
    hardware: HardwareConfig,
    device: Device,
    *,
    fixed: bool,
) -> TeacherView:
    """Return what a student sees of the teacher; nothing is loaded.

    Args:
        cache: the teacher's cache; None for none.
        teacher: the teacher.
        data: template and length.
        hardware: precision of matrix products.
        device: where it computes.
        fixed: whether every sequence is a row of the data set, so that a cache can be made before.

    Raises:
        InputError: there is no such cache.
        ExperimentChangedError: it was made of something else.
    """
    if cache is None and teacher.server is not None and not fixed:
        return TeacherView(top_k=teacher.server.top_k, live=True)
    if cache is None:
        return TeacherView()
    found = read_key(Path(cache))["key"]
    check_key(found, cache_key(teacher, data, hardware, device), Path(cache))
    return TeacherView.of_cache(found)


def server_of(config: DistillConfig) -> ServerConfig:
    """Return how a served teacher is asked; what a cache says of the model's name need not be asked for again."""
    server = config.server.model_copy(update={"url": config.teacher})
    if config.teacher is None or not is_url(config.teacher) or config.teacher_cache is None or server.model:
        return server
    name = served_model(str(read_key(Path(config.teacher_cache))["key"].get("teacher")), address_of(server).url)
    return server.model_copy(update={"model": name})


def measuring_of(config: DistillConfig) -> EvalConfig:
    """Return the settings by which a run's student is measured; its folder is not among them.

    Args:
        config: the run's settings.
    """
    return EvalConfig(
        teacher=config.teacher,
        teacher_cache=config.teacher_cache,
        teacher_quantization=config.teacher_quantization,
        data=config.data,
        hardware=config.hardware,
        evaluation=config.evaluation,
        benchmarks=config.benchmarks if config.evaluation.split == "test" else BenchmarkConfig(),
        pictures=False,
    )


def _check_tasks(tasks: tuple[str, ...], *, measured: bool) -> None:
    if not tasks:
        return
    if not measured:
        where, fix = "benchmarks.tasks", "give held-out rows with --eval-data, or run kd eval RUN --tasks afterwards"
        raise UsageError("CLI-20", "nothing is measured after training", where=where, fix=fix)
    check_tasks(tasks)


def objective_of(text: str) -> tuple[DistillLoss, str, Source]:
    """Return the loss a spec string names, its canonical spelling, and its source.

    Raises:
        UsageError: what in the string is not known.
    """
    spec = parse_objective(text)
    loss, source = build_objective(spec), build_source(spec.source)
    return loss, f"{spec_of(loss)}{tail_of(source)}", source
