"""What goes together: objective, source, teacher, tokenizers, metrics and placement, checked before weights are read.

:func:`check` asks every rule of one table and returns all that is wrong. ``kd distill``, each line of ``kd compare``,
and what these two would do (``kd plan``, ``--dry-run``) come through it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from transformers import PreTrainedConfig

from kdcli import distributed
from kdcli.classifiers.model import classifier_config
from kdcli.classifiers.tiny import is_tiny
from kdcli.config.sections import DataConfig, EvalSettings, HardwareConfig, LoraConfig, MonitorConfig
from kdcli.data.choices import encode_choices
from kdcli.data.tokenize import TokenDataset
from kdcli.distill.validation import deciding_score
from kdcli.errors import InputError, KDError, UsageError
from kdcli.evaluation.classes import check_class_metrics
from kdcli.evaluation.on_policy import check_on_policy
from kdcli.evaluation.scoring import MetricSet, choose_metrics, refuse_images
from kdcli.loading import splits
from kdcli.loading.info import ModelPair, fault_of_images, read_ensemble
from kdcli.losses.base import Dims, DistillLoss
from kdcli.losses.build import build_objective
from kdcli.losses.composite import losses_inside
from kdcli.metrics.describe import describe
from kdcli.models.adapters import check_adapter
from kdcli.models.checks import open_folder
from kdcli.models.layers import shape_of
from kdcli.models.load import check_length, positions_in, positions_stated
from kdcli.models.tokenizer import ACROSS
from kdcli.models.weights import CAUSAL, VISION, build_config
from kdcli.registry.registry import LOSSES
from kdcli.remote.address import is_url
from kdcli.sources.base import Source
from kdcli.sources.build import cards, supplying, writing
from kdcli.storage.locate import model_of
from kdcli.students.made import made_config
from kdcli.students.supernet_spec import is_supernet, parse_supernet
from kdcli.teachers.cached import TeacherView
from kdcli.teachers.class_view import check_class_view
from kdcli.text import one_line


@dataclass(frozen=True, kw_only=True)
class Combination:
    """What one run puts together.

    Args:
        loss: the objective.
        source: where its sequences come from.
        label: both, in canonical form.
        teacher: as named: a folder, a hub id, several of them, or a server's address; None for none.
        teacher_cache: the cache that is read in its place.
        quantization: what its weights are rounded to.
        data: where rows come from.
        hardware: devices and placement.
        lora: the student's adapter.
        evaluation: what is measured after training.
        monitor: what is measured while training.
        pair: student and teacher; None until they were looked at.
        view: what the student sees of the teacher; None until that is known, or where it asks for nothing.
        keep_zeros: whether the student's weights that are 0 stay 0.
    """

    loss: DistillLoss
    source: Source
    label: str
    teacher: str | None
    teacher_cache: str | None
    quantization: str
    data: DataConfig
    hardware: HardwareConfig
    lora: LoraConfig
    evaluation: EvalSettings
    monitor: MonitorConfig
    pair: ModelPair | None
    view: TeacherView | None = None
    keep_zeros: bool = False

    @property
    def needs_teacher(self) -> bool:
        """Whether training reads the teacher's outputs; the sizes of a supernet learn from the largest of them."""
        return self.loss.needs().anything_of_teacher and not self.has_several_sizes

    @property
    def has_several_sizes(self) -> bool:
        """Whether the student is a supernet."""
        return self.pair is not None and is_supernet(self.pair.student)

    @property
    def is_measured(self) -> bool:
        """Whether the student is measured after training."""
        return splits.measures_after_training(self.data, self.evaluation.split)

    @property
    def monitored(self) -> tuple[str, ...]:
        """The metrics measured while training."""
        return self.monitor.metrics if self.monitor.every is not None else ()

    @property
    def has_several_teachers(self) -> bool:
        """Whether distributions of several teachers are mixed."""
        return self.teacher is not None and read_ensemble(self.teacher) is not None


Faults: TypeAlias = Iterator[KDError]


def check(run: Combination) -> list[KDError]:
    """Return everything about a run that does not go together, each with code, place and what would do.

    Rules about models say nothing as long as ``run.pair`` and ``run.view`` are None.
    """
    return [fault for rule in RULES for fault in rule(run)]


# The objective and the source.


def _source_supplies(run: Combination) -> Faults:
    """Origins, drawn sequences and per-token facts that the objective asks of its source; the nearest reason only."""
    loss, source = run.loss, run.source
    needs, absent = loss.needs(), sorted(loss.needs().origins - source.needs().origins)
    if absent:
        able = [f"@{name}" for name in writing(absent[0])]
        yield UsageError(
            "PAIR-05", f"{loss.name} has an objective for {absent[0]} sequences, and @{source.name} has none",
            where=run.label, fix=f"pair it with {' or '.join(able)}" if able else f"leave {absent[0]}= out",
        )  # fmt: skip
    elif needs.drawn and source.needs().offline:
        able = [f"@{card.name}" for card in cards() if not card.fixed and needs.facts <= set(card.facts)]
        yield UsageError(
            "PAIR-07", f"{loss.name} needs sequences that a model draws, and @{source.name} has rows of the data set",
            where=run.label, fix=f"pair it with {' or '.join(able)}",
        )  # fmt: skip
    elif missing := sorted(needs.facts - source.needs().facts):
        able = [f"@{name}" for name in supplying(missing[0])]
        yield UsageError(
            "PAIR-01", f"{loss.name} reads {missing[0]} of every token, which @{source.name} does not know",
            where=run.label,
            fix=f"pair it with {' or '.join(able)}" if able else "give a source of your own that supplies it",
        )  # fmt: skip


def _corpus(run: Combination) -> Faults:
    if run.source.needs().corpus and run.data.corpus is None:
        fix = "give --set data.corpus=FILE"
        yield UsageError("PAIR-03", f"{run.label} reads a second corpus", where="data.corpus", fix=fix)


def _followed_score(run: Combination) -> Faults:
    """A source that follows an evaluation needs one, with a score of which less is better."""
    score = run.source.needs().monitor
    if not score:
        return
    if run.monitor.every is None:
        yield UsageError(
            "PAIR-04", f"@{run.source.name} follows an evaluation made while training, and there is none",
            where=run.label, fix="give kd distill --eval-every N, with --eval-data or --set data.dev_share=0.1",
        )  # fmt: skip
        return
    known = {name: better for metric in run.monitor.metrics for name, better in describe(metric).scores.items()}
    if known.get(score) != "lower":
        lower = [name for name, better in known.items() if better == "lower"]
        fix = f"choose score={lower[0]}" if lower else "add perplexity to monitor.metrics"
        what = f"the evaluation while training has no lower-is-better score {one_line(score)}"
        yield UsageError("PAIR-06", what, where=run.label, fix=fix)


def _monitored_score(run: Combination) -> Faults:
    """What is measured while training needs rows, and a score that says which student is best."""
    if run.monitor.every is not None:
        yield from faults_of(lambda: deciding_score(run.monitor, run.data, run.teacher))
    elif run.monitor.patience is not None:
        what = "monitor.patience counts evaluations, and there are none"
        yield UsageError("CLI-20", what, where="monitor.every", fix="give --set monitor.every=N")


# Classes of texts.


def _classes(run: Combination) -> Faults:
    """A classifier learns from rows as they are, reads logits of its teacher, and has scores of classes."""
    if run.pair is None or not run.pair.classifies:
        return
    wanted = run.source.needs()
    if wanted.teacher or wanted.student or wanted.corpus or wanted.monitor or not wanted.offline:
        what = f"@{run.source.name} writes or mixes texts, and a classifier learns from the rows as they are"
        yield UsageError("CLS-03", what, where=run.label, fix="leave the source out")
    if run.loss.needs().features:
        what = f"{run.label} compares layers inside the models, and classifiers show their logits alone"
        yield UsageError("CLS-03", what, where=run.label, fix="use an objective on logits, such as ce+fkl")
    refused = {
        "--lora": ("an adapter is trained in a causal LM alone", run.lora.rank is not None),
        "--teacher-cache": ("a cache holds what a teacher says of tokens", run.teacher_cache is not None),
        "--shard": ("a classifier is kept whole in every process", run.hardware.shard != "ddp"),
        "--keep-zeros": ("zeros are kept in a causal LM alone", run.keep_zeros),
        "monitor.every": ("a classifier is measured after training only", run.monitor.every is not None),
    }
    for where, (what, holds) in refused.items():
        if holds:
            yield UsageError("CLS-03", what, where=where, fix="leave it out")


# Placement.


def _shards(run: Combination) -> Faults:
    if run.hardware.shard == "ddp":
        return
    across = run.pair is not None and run.pair.teacher_vocab is not None and run.needs_teacher
    kept_whole = {
        f"{run.label} compares layers inside the models": run.loss.needs().features,
        "the teacher is an ensemble": run.has_several_teachers,
        "the teacher is quantised": run.quantization != "none",
        f"{run.label} has a teacher of another tokenizer": across,
    }
    what = next((reason for reason, holds in kept_whole.items() if holds), None)
    if what is not None:
        fix = "use --set hardware.shard=ddp, which keeps every model whole"
        yield UsageError("CLI-22", f"{what}, which does not go with shards", where="--shard", fix=fix)


def _compiled_layers(run: Combination) -> Faults:
    if run.hardware.compile and run.loss.needs().features:
        what = f"{run.label} compares layers inside the models, which compiled layers do not show"
        yield UsageError("COMPILE-03", what, where="hardware.compile", fix="leave hardware.compile out")


def _adapter(run: Combination) -> Faults:
    if run.pair is not None and not run.pair.classifies:
        random = run.pair.student_is_random
        yield from faults_of(lambda: check_adapter(run.lora, student_is_random=random))


def _adapter_fills_zeros(run: Combination) -> Faults:
    if run.keep_zeros and run.lora.rank is not None:
        what = "an adapter is added to every weight of a matrix, those that are 0 too, and train.keep_zeros keeps them"
        yield UsageError("LORA-04", what, where="--keep-zeros", fix="leave --lora out, or leave --keep-zeros out")


def _several_sizes(run: Combination) -> Faults:
    """What a supernet does not go with."""
    if not run.has_several_sizes or run.pair is None:
        return
    needs, low_rank = run.loss.needs(), parse_supernet(run.pair.student).update == "low-rank"
    where = one_line(run.pair.student, 80)

    def refused(what: str, *, fix: str) -> UsageError:
        return UsageError("SUP-06", what, where=where, fix=fix)

    if not needs.anything_of_teacher:
        what = f"{run.label} asks nothing of the largest size"
        yield refused(what, fix="give --loss fkl, and --set supernet.alpha=0 where only cross-entropy is wanted")
    if needs.features:
        yield refused(f"{run.label} compares layers of two models", fix="leave hidden and attention out")
    if needs.survey != "none":
        what = f"{run.label} looks at the largest size's logits twice"
        yield refused(what, fix="give --loss akl or another objective of one pass")
    if needs.drawn or not run.source.needs().offline:
        yield refused(f"{run.label} trains on sequences that models write", fix="leave the source out")
    if run.lora.rank is not None:
        yield refused("an adapter has the form of one size", fix="leave it out; kd supernet has --update low-rank")
    if run.hardware.gpus > 1 or distributed.world() > 1:
        yield refused("one process trains all sizes", fix="leave hardware.gpus out, and start one process")
    if run.hardware.compile:
        yield refused("compiled layers have one size", fix="leave hardware.compile out")
    if run.teacher_cache is not None:
        yield refused("sizes learn from the largest, not from a cache", fix="leave --teacher-cache out")
    if run.quantization != "none":
        yield refused("its weights are the teacher's, not rounded ones", fix="leave teacher_quantization out")
    if low_rank and run.monitor.every is not None:
        what = "an evaluation while training would not see the low-rank pairs"
        yield refused(what, fix="leave monitor.every out, or train all weights")
    if low_rank and run.keep_zeros:
        what = "low-rank pairs are added to weights that are 0, too, and train.keep_zeros keeps them"
        yield refused(what, fix="leave one of the two out")


# The teacher: that there is one, how many, behind a cache or a server.


def _teacher_is_there(run: Combination) -> Faults:
    if run.teacher is None and (run.needs_teacher or run.source.needs().teacher):
        what = "learns from a teacher" if run.needs_teacher else "trains on what a teacher writes"
        yield UsageError("CLI-20", f"{run.label} {what}", where="--teacher", fix="give a folder or a hub id")


def _one_teacher(run: Combination) -> Faults:
    """Sources that let a teacher write, metrics that let it answer, and caches, have one teacher."""
    if not run.has_several_teachers:
        return
    both = f"{one_line(str(run.teacher))} are several teachers"
    if run.source.needs().teacher:
        what, fix = f"@{run.source.name} asks one teacher, and {both}", "give one of them, or another source"
        yield UsageError("CLI-22", what, where=run.label, fix=fix)
    answering = [name for name in _named(run) if _needs_teacher(name) and describe(name).input_kind == "own"]
    if answering:
        what = f"{', '.join(answering)} asks one teacher, and {both}"
        fix = f"give one of them, or --metric {_rest(run, answering)}"
        yield UsageError("CLI-22", what, where="--teacher", fix=fix)
    if run.teacher_cache is not None and run.needs_teacher:
        what, fix = f"a cache holds one teacher, and {both}", "leave the teacher cache out"
        yield UsageError("CLI-22", what, where="--teacher-cache", fix=fix)


def _cached_rows(run: Combination) -> Faults:
    if run.teacher_cache is not None and run.needs_teacher and not run.source.needs().offline:
        yield UsageError(
            "PAIR-02", f"a teacher's cache knows the rows of the data set, and @{run.source.name} trains on others",
            where=f"{run.label} with --teacher-cache",
            fix="leave --teacher-cache out, or leave the source out",
        )  # fmt: skip


def _served_source(run: Combination) -> Faults:
    if run.teacher is not None and is_url(run.teacher):
        yield from wordless(run.source, run.label)


def _served_rows(run: Combination) -> Faults:
    """Of rows of the data set a server is asked once, before training."""
    asks = run.pair is not None and run.needs_teacher and run.source.needs().offline and not run.loss.needs().features
    if run.teacher is not None and is_url(run.teacher) and run.teacher_cache is None and asks:
        yield UsageError(
            "SERVE-10", "a teacher behind a server reads the data's rows once, for a compact cache",
            where=f"--teacher {run.teacher}",
            fix="kd cache --kind compact with this teacher, --student and --data; then add --teacher-cache",
        )  # fmt: skip


def _served_metrics(run: Combination) -> Faults:
    """Scores that need a teacher's whole distribution, of which a server shows a part."""
    if run.teacher is None or not is_url(run.teacher):
        return
    for names in (run.evaluation.metrics if run.is_measured else (), run.monitored):
        bad = [name for name in names if _needs_teacher(name)]
        if bad:
            rest = ",".join(name for name in names if name not in bad) or "perplexity"
            what = f"{', '.join(bad)} needs the whole teacher, and a server shows a part of it"
            yield UsageError("SERVE-10", what, where="--metric", fix=f"give --metric {rest}")


def wordless(source: Source, where: str) -> Faults:
    """Yield the fault of a source that wants more of a teacher behind a server than its words."""
    needs = source.needs()
    if needs.teacher and not needs.text_only:
        able = [f"@{card.name}" for card in cards() if card.words]
        what = (
            f"@{one_line(source.name)} as it is set asks the teacher token by token, and a server gives whole answers"
        )
        fix = f"give the teacher's folder, or use {' or '.join(able)} with sampled or greedy answers"
        yield UsageError("SERVE-10", what, where=where, fix=fix)


# What is measured after training.


def _metrics_can_be_had(run: Combination) -> Faults:
    if run.is_measured:
        yield from faults_of(lambda: _metrics(run))


def _metrics(run: Combination) -> MetricSet:
    if run.pair is not None and run.pair.classifies:
        check_class_metrics(run.evaluation)
    fitted_on = splits.has_development_apart(run.data, run.evaluation.split)
    return choose_metrics(run.evaluation, teacher=run.teacher is not None, development=fitted_on)


def _named(run: Combination) -> Sequence[str]:
    """Return the metrics asked for by name; of the default ones those that cannot be had are left out."""
    return run.evaluation.metrics if run.is_measured and run.evaluation.metrics != EvalSettings().metrics else ()


def _needs_teacher(name: str) -> bool:
    return describe(name).needs_teacher


def _rest(run: Combination, bad: Sequence[str]) -> str:
    return ",".join(name for name in run.evaluation.metrics if name not in bad) or "perplexity"


# A teacher of another tokenizer: nothing may compare token ids of the two models.


def _equal_tokens(run: Combination) -> Faults:
    needs = run.loss.needs()
    if _is_across(run) and needs.anything_of_teacher and needs.same_tokens:
        assert run.pair is not None, "two tokenizers are those of a pair"
        what = f"{offending_loss(run.loss).name} compares the two token by token, and their {run.pair.difference}"
        yield InputError("TOK-03", what, where=run.label, fix=ACROSS)


def _equal_tokens_in_source(run: Combination) -> Faults:
    if _is_across(run) and run.source.needs().same_tokens:
        what = f"@{run.source.name} draws each token from both models, and their tokenizers differ"
        yield UsageError("PAIR-09", what, where=run.label, fix="use @teacher, @student or the rows themselves")


def _equal_tokens_in_cache(run: Combination) -> Faults:
    if _is_across(run) and run.needs_teacher and run.teacher_cache is not None:
        what = "a cache holds the teacher's output after the student's own tokens, and the tokenizers differ"
        fix = "leave --teacher-cache out: the teacher runs with the student"
        yield UsageError("PAIR-08", what, where=f"{run.label} with --teacher-cache", fix=fix)


def _equal_tokens_in_metrics(run: Combination) -> Faults:
    if not _is_across(run):
        return
    for where, names in {"--metric": _named(run), "monitor.metrics": run.monitored}.items():
        bad = [name for name in names if _needs_teacher(name)]
        if bad:
            rest = ",".join(name for name in names if name not in bad) or "perplexity"
            what = f"{', '.join(bad)} compares token ids with the teacher's, and the tokenizers differ"
            yield UsageError("PAIR-10", what, where=where, fix=f"measure {rest}")


def _is_across(run: Combination) -> bool:
    return run.pair is not None and run.pair.teacher_vocab is not None


def offending_loss(loss: DistillLoss) -> DistillLoss:
    """Return the innermost part of an objective that asks for one tokenizer.

    >>> from kdcli.losses.build import build_objective
    >>> [offending_loss(build_objective(spec)).name for spec in ("ce+ramp:loss=fkl", "revised:loss=uld")]
    ['fkl', 'revised']
    """
    for child in losses_inside(loss):
        if child.needs().anything_of_teacher and child.needs().same_tokens:
            return offending_loss(child)
    return loss


# Layers inside the models: a cache and a server show none, and those named must be there.


def _layers(run: Combination) -> Faults:
    features = run.loss.needs().features
    if not features or run.teacher is None:
        return
    compared = f"{run.label} compares {' and '.join(sorted(features))} inside the models"
    if run.teacher_cache is not None:
        fix = "leave the cache out, or leave hidden and attention out of the objective"
        yield UsageError("CACHE-09", f"{compared}; a cache keeps neither", where="--teacher-cache", fix=fix)
    elif is_url(run.teacher):
        fix = "give the teacher's folder, or leave hidden and attention out of the objective"
        yield UsageError("FEAT-03", f"{compared}; a server shows neither", where="--teacher", fix=fix)
    elif (pair := run.pair) is not None:
        yield from faults_of(lambda: run.loss.matches(dims_of(pair)))


def dims_of(pair: ModelPair) -> Dims:
    """Return the sizes of both models, from their config.json or the student's ``random:`` spec."""
    assert pair.teacher is not None, "an objective on features has a teacher"
    teacher = shape_of(_config(pair.teacher.path))
    if pair.student_is_made:
        return Dims(shape_of(made_config(pair.student, model_of(pair.teacher.path))), teacher)
    return Dims(shape_of(_config(pair.student)), teacher)


def _config(path: str) -> PreTrainedConfig:
    checked = open_folder(model_of(path), images=True)
    return build_config(checked.settings, str(checked.folder), VISION if checked.images else CAUSAL)


# The k likeliest tokens of a compact cache or a server: not every objective is defined on them.


def _known_tokens(run: Combination) -> Faults:
    known = run.view.top_k if run.view is not None else None
    why = _why_not(run.loss, known) if known is not None else None
    if run.view is None or known is None or why is None:
        return
    able = f"an objective that would work: {_working(known)}"
    if run.view.live:
        what = f"{run.label} is not defined on the {known} tokens that a server is asked for: {why}"
        yield UsageError("SERVE-12", what, where="--teacher", fix=f"use the teacher itself, or {able}")
        return
    what, fix = f"{run.label} is not defined on a compact cache: {why}", "build an exact cache, use the teacher itself"
    yield UsageError("CACHE-06", what, where="--teacher-cache", fix=f"{fix}, or {able}")


def _why_not(loss: DistillLoss, known: int) -> str | None:
    """Say why an objective is not defined where so many tokens of a teacher are known; None where it is."""
    needs = loss.needs()
    if not needs.teacher:
        return None
    few = f"it needs {needs.min_top_k} known tokens or more, since the student's own mass leads it; there is {known}"
    return needs.full_distribution or (few if known < needs.min_top_k else None)


def _working(known: int) -> str:
    """Return the registered objectives that a compact cache of so many tokens serves, ones on layers left out."""
    found = {name: build_objective(name) for name in LOSSES.names()}
    return ", ".join(
        name for name, loss in found.items() if not loss.needs().features and _why_not(loss, known) is None
    )


# Rows: models must be able to read them, and metrics need what they hold. No weight is read.


def check_rows(run: Combination, trained: TokenDataset, measured: TokenDataset | None) -> list[KDError]:
    """Return what does not go with the rows.

    Args:
        run: what is put together, both models looked at.
        trained: the training rows.
        measured: the rows measured after training, if any are.
    """
    assert run.pair is not None, "rows are read by a model's tokenizer"
    if run.pair.classifies:
        return faults_of(lambda: _check_classes(run, trained, measured))
    if refused := [*_images(run, trained, measured)]:
        return refused
    longest, pair = max(trained.lengths), run.pair
    student, bound = pair.student, _positions_of_student(pair)
    reading, positions = {student: bound}, {student: bound}
    if pair.teacher is not None and pair.teacher.server is None:
        members = pair.teacher.members or (pair.teacher,)
        theirs = {one.path: positions_stated(model_of(one.path)) for one in members}
        if run.needs_teacher and run.teacher_cache is None and not _is_across(run):
            reading |= theirs
        positions |= theirs
    short = next((path for path, most in reading.items() if most is not None and longest > most), student)
    works: list[Callable[[], object]] = [lambda: check_length(longest, reading[short], short)]
    if measured is not None:
        works += _measurable(run, measured, positions)
    return faults_of(*works)


def _images(run: Combination, trained: TokenDataset, measured: TokenDataset | None) -> Faults:
    """What rows with images do not go with, and what does not read the same images."""
    pair, first = run.pair, _first_with_images(trained, measured)
    assert pair is not None, "see check_rows"
    if first is None:
        return
    one, wanted = f"rows have images (first {first})", run.source.needs()
    whole = "give a folder of a model of images and text"
    refused = {
        "--student": ("a student made on the spot", pair.student_is_made, whole),
        run.label: (
            f"@{run.source.name}, which writes or mixes texts",
            wanted.teacher or wanted.student or wanted.corpus or bool(wanted.monitor) or not wanted.offline,
            "leave the source out: the rows are learnt as they are",
        ),
        "--lora": ("an adapter", run.lora.rank is not None, "leave it out"),
        "--shard": ("shards", run.hardware.shard != "ddp", "leave it out"),
        "hardware.gpus": (
            "several processes", run.hardware.gpus > 1 or distributed.world() > 1, "start one process on one device"
        ),
        "hardware.compile": ("compiled layers", run.hardware.compile, "leave it out"),
        "--keep-zeros": ("zeros that are kept", run.keep_zeros, "leave it out"),
    }  # fmt: skip
    for where, (what, holds, fix) in refused.items():
        if holds:
            yield UsageError("IMG-06", f"{one}, which {what} is not made for", where=where, fix=fix)
    yield from _images_of_teacher(run, one)
    if measured is not None:
        yield from faults_of(lambda: refuse_images(_metrics(run), measured))


def _first_with_images(*datasets: TokenDataset | None) -> str | None:
    rows = (row for rows in datasets if rows is not None for row in rows.examples)
    return next((row.where for row in rows if row.images is not None), None)


def _images_of_teacher(run: Combination, one: str) -> Faults:
    """A teacher reads the images that its student reads: it is one, it runs, and it prepares them in the same way."""
    pair = run.pair
    assert pair is not None, "see check_rows"
    if pair.teacher is None:
        return
    fault = fault_of_images(pair.teacher, pair.reader, across=pair.teacher_vocab is not None)
    if fault is not None:
        yield UsageError("IMG-06", f"{one}, and {fault[0]}", where="--teacher", fix=fault[1])


def _check_classes(run: Combination, trained: TokenDataset, measured: TokenDataset | None) -> None:
    """Refuse rows that a classifier cannot read, and settings of a class view that cannot be meant."""
    pair = run.pair
    assert pair is not None, "see check_rows"
    if not is_tiny(pair.student):
        bound = positions_in(classifier_config(model_of(pair.student)))
        longest = max(max(rows.lengths) for rows in (trained, measured) if rows is not None)
        check_length(longest - 1, bound, pair.student)
    if pair.teacher is not None and pair.teacher.labels is None and run.needs_teacher:
        check_class_view(run.data, trained.labels)


def _positions_of_student(pair: ModelPair) -> int | None:
    if not pair.student_is_made:
        return positions_stated(model_of(pair.student))
    assert pair.teacher is not None, "a random student takes its form from a teacher"
    first = pair.teacher.members[0] if pair.teacher.members else pair.teacher
    return positions_in(made_config(pair.student, model_of(first.path)))


def _measurable(
    run: Combination, rows: TokenDataset, positions: Mapping[str, int | None]
) -> Iterator[Callable[[], object]]:
    """Yield what refuses rows that a metric cannot be taken on: too long, without choices, no room for an answer."""
    assert run.pair is not None, "see check_rows"
    tokenizer, student, chosen = run.pair.reader.tokenizer, run.pair.student, _metrics(run)
    yield lambda: check_length(max(rows.lengths), positions[student], student)
    if chosen.choices:
        yield lambda: encode_choices(tokenizer, rows)
    if chosen.own:
        compared = any(metric.needs_teacher() for metric in chosen.own)
        read = positions if compared else {student: positions[student]}
        yield lambda: check_on_policy(chosen.own, rows, run.evaluation.generation.max_new_tokens, read)


RULES: tuple[Callable[[Combination], Faults], ...] = (
    _classes,
    _source_supplies,
    _shards,
    _compiled_layers,
    _teacher_is_there,
    _one_teacher,
    _cached_rows,
    _corpus,
    _followed_score,
    _served_source,
    _served_metrics,
    _metrics_can_be_had,
    _monitored_score,
    _layers,
    _equal_tokens,
    _equal_tokens_in_source,
    _equal_tokens_in_cache,
    _equal_tokens_in_metrics,
    _served_rows,
    _adapter,
    _adapter_fills_zeros,
    _several_sizes,
    _known_tokens,
)
"""Every rule, the one whose fault is told first before the others."""


def faults_of(*works: Callable[[], object]) -> list[KDError]:
    """Return what each of several pieces of work refuses to do."""
    found: list[KDError] = []
    for work in works:
        try:
            work()
        except KDError as fault:
            found += [fault, *fault.also]
    return found


def own_words_note(loss: DistillLoss, source: Source) -> str | None:
    """Return the warning for an objective that takes the student's own answers for labels; None otherwise.

    Args:
        loss: the objective.
        source: where its sequences come from.

    >>> from kdcli.losses.build import build_objective
    >>> from kdcli.sources.build import build_source
    >>> own_words_note(build_objective("0.5*ce+0.5*jsd"), build_source("student"))[:56]
    "cross-entropy takes the student's own words for right an"
    >>> own_words_note(build_objective("jsd"), build_source("student")) is None
    True
    """
    own = sorted(source.needs().origins & {"student", "rollout"})
    if not own or not loss.needs().right_labels:
        return None
    return (
        f"cross-entropy takes the student's own words for right answers, of which @{source.name} supplies some; "
        f"route gives each origin its own objective, as in route:data=ce,{own[0]}=jsd"
    )
