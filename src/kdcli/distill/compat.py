"""Compatibility of objectives, sources, teachers and tokenizers, checked before weights are read."""

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedConfig

from kdcli.config.schema import DataConfig, DistillConfig, EvalSettings, HardwareConfig, ServerConfig
from kdcli.errors import InputError, UsageError
from kdcli.loading.info import ModelInfo, ModelPair, model_of, read_ensemble, require_single
from kdcli.losses.base import Dims, DistillLoss
from kdcli.losses.build import build_objective
from kdcli.losses.composite import losses_inside
from kdcli.metrics.describe import describe
from kdcli.models.checks import open_folder
from kdcli.models.devices import Device
from kdcli.models.layers import shape_of
from kdcli.models.random_init import random_config
from kdcli.models.tokenizer import ACROSS
from kdcli.models.weights import build_config
from kdcli.registry.registry import LOSSES
from kdcli.remote.address import address_of, is_url, served_model
from kdcli.sources.base import Source
from kdcli.sources.build import cards, supplying, writing
from kdcli.sources.teacher import refuse_wordless
from kdcli.teachers.cache_files import read_key
from kdcli.teachers.cached import TeacherView, cache_key, check_key
from kdcli.text import one_line


def view_of(
    cache: str | None,
    teacher: ModelInfo,
    data: DataConfig,
    hardware: HardwareConfig,
    device: Device,
    *,
    fixed: bool = True,
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
        UsageError: SERVE-10, a server that a cache should stand for.
        InputError: there is no such cache.
        ExperimentChangedError: it was made of something else.
    """
    if cache is None and teacher.server is not None and not fixed:
        return TeacherView(top_k=teacher.server.top_k, live=True)
    if cache is None and teacher.server is not None:
        raise UsageError(
            "SERVE-10", "a teacher behind a server reads the data's rows once, for a compact cache",
            where=f"--teacher {teacher.path}",
            fix="kd cache --kind compact with this teacher, --student and --data; then add --teacher-cache",
        )  # fmt: skip
    if cache is None:
        return TeacherView()
    require_single(teacher.path, "a cache remembers one teacher", "--teacher-cache", "leave the teacher cache out")
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


def refuse_coarse(view: TeacherView, loss: DistillLoss, label: str) -> None:
    """Refuse an objective that is not defined on what a compact cache keeps.

    Raises:
        UsageError: names it and says why.
    """
    known = view.top_k
    why = _why_not(loss, known) if known is not None else None
    if known is None or why is None:
        return
    if view.live:
        raise UsageError(
            "SERVE-12", f"{label} is not defined on the {known} tokens that a server is asked for: {why}",
            where="--teacher", fix=f"use the teacher itself, or an objective that would work: {_working(known)}",
        )  # fmt: skip
    raise UsageError(
        "CACHE-06", f"{label} is not defined on a compact cache: {why}", where="--teacher-cache",
        fix=f"build an exact cache, use the teacher itself, or an objective that would work: {_working(known)}",
    )  # fmt: skip


def refuse_measuring(metrics: Sequence[str], *, measured: bool) -> None:
    """Refuse scores that need a teacher's whole distribution, of which a server shows a part.

    Raises:
        UsageError: SERVE-10, names them and those that can be had.
    """
    bad = [name for name in metrics if describe(name).needs_teacher]
    if measured and bad:
        rest = ",".join(name for name in metrics if name not in bad) or "perplexity"
        what = f"{', '.join(bad)} needs the whole teacher, and a server shows a part of it"
        raise UsageError("SERVE-10", what, where="--metric", fix=f"give --metric {rest}")


def _why_not(loss: DistillLoss, known: int) -> str | None:
    """Say why an objective is not defined where so many tokens of a teacher are known; None where it is."""
    needs = loss.needs()
    if not needs.teacher:
        return None
    few = f"it needs {needs.known} known tokens or more, since the student's own mass leads it; there is {known}"
    return needs.whole or (few if known < needs.known else None)


def _working(known: int) -> str:
    """Return the registered objectives that a compact cache of so many tokens serves, ones on layers left out."""
    found = {name: build_objective(name) for name in LOSSES.names()}
    return ", ".join(
        name for name, loss in found.items() if not loss.needs().features and _why_not(loss, known) is None
    )


def refuse_pair(config: DistillConfig, loss: DistillLoss, source: Source, label: str) -> None:
    """Refuse combinations of settings that cannot be trained with any data.

    Args:
        config: the run's settings.
        loss: the objective.
        source: where its sequences come from.
        label: both, in canonical form.

    Raises:
        UsageError: names what is missing, and settings or sources that would do.
    """
    needs = source.needs()
    _refuse_facts(loss, source, label)
    _refuse_shards(config, loss, label)
    _refuse_compiled(config, loss, label)
    if config.teacher is None and (loss.needs().anything_of_teacher or needs.teacher):
        what = "learns from a teacher" if loss.needs().anything_of_teacher else "trains on what a teacher writes"
        raise UsageError("CLI-20", f"{label} {what}", where="--teacher", fix="give a folder or a hub id")
    if needs.teacher:
        require_single(config.teacher, f"@{source.name} asks one teacher", label, "give one of them, or another source")
    if config.teacher_cache is not None and loss.needs().anything_of_teacher and not needs.fixed:
        raise UsageError(
            "PAIR-02",
            f"a teacher's cache knows the rows of the data set, and @{source.name} trains on others",
            where=f"{label} with --teacher-cache",
            fix="leave --teacher-cache out, or leave the source out",
        )
    if needs.corpus and config.data.corpus is None:
        raise UsageError(
            "PAIR-03", f"{label} reads a second corpus", where="data.corpus", fix="give --set data.corpus=FILE"
        )
    if needs.monitor and config.monitor.every is None:
        raise UsageError(
            "PAIR-04", f"@{source.name} follows an evaluation made while training, and there is none", where=label,
            fix="give kd distill --eval-every N, with --eval-data or --set data.dev_share=0.1",
        )  # fmt: skip
    if needs.monitor:
        _refuse_score(config, needs.monitor, label)


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


def _refuse_score(config: DistillConfig, score: str, label: str) -> None:
    known = {name: better for metric in config.monitor.metrics for name, better in describe(metric).scores.items()}
    if known.get(score) == "lower":
        return
    lower = [name for name, better in known.items() if better == "lower"]
    fix = f"choose score={lower[0]}" if lower else "add perplexity to monitor.metrics"
    what = f"the evaluation while training has no lower-is-better score {one_line(score)}"
    raise UsageError("PAIR-06", what, where=label, fix=fix)


def _refuse_shards(config: DistillConfig, loss: DistillLoss, label: str) -> None:
    """Refuse what cannot be cut into shards."""
    if config.hardware.shard == "ddp":
        return
    kept_whole = {
        f"{label} compares layers inside the models": bool(loss.needs().features),
        "several teachers speak as one": config.teacher is not None and read_ensemble(config.teacher) is not None,
        "the teacher is quantised": config.teacher_quantization != "none",
    }
    what = next((reason for reason, holds in kept_whole.items() if holds), None)
    if what is not None:
        fix = "use --set hardware.shard=ddp, which keeps every model whole"
        raise UsageError("CLI-22", f"{what}, which does not go with shards", where="--shard", fix=fix)


def _refuse_compiled(config: DistillConfig, loss: DistillLoss, label: str) -> None:
    if config.hardware.compile and loss.needs().features:
        what = f"{label} compares layers inside the models, which compiled layers do not show"
        raise UsageError("COMPILE-03", what, where="hardware.compile", fix="leave hardware.compile out")


def _refuse_facts(loss: DistillLoss, source: Source, label: str) -> None:
    absent = sorted(loss.needs().origins - source.needs().origins)
    if absent:
        able = [f"@{name}" for name in writing(absent[0])]
        raise UsageError(
            "PAIR-05", f"{loss.name} has an objective for {absent[0]} sequences, and @{source.name} has none",
            where=label, fix=f"pair it with {' or '.join(able)}" if able else f"leave {absent[0]}= out",
        )  # fmt: skip
    if loss.needs().drawn and source.needs().fixed:
        able = [f"@{card.name}" for card in cards() if not card.fixed and loss.needs().facts <= set(card.facts)]
        raise UsageError(
            "PAIR-07", f"{loss.name} needs sequences that a model draws, and @{source.name} has rows of the data set",
            where=label, fix=f"pair it with {' or '.join(able)}",
        )  # fmt: skip
    missing = sorted(loss.needs().facts - source.needs().facts)
    if not missing:
        return
    fact = missing[0]
    able = [f"@{name}" for name in supplying(fact)]
    raise UsageError(
        "PAIR-01",
        f"{loss.name} reads {fact} of every token, which @{source.name} does not know",
        where=label,
        fix=f"pair it with {' or '.join(able)}" if able else "give a source of your own that supplies it",
    )


# What goes together with a teacher of another tokenizer, and how it reads the rows; no weight is read.


def refuse_across(config: DistillConfig, loss: DistillLoss, source: Source, label: str, pair: ModelPair) -> None:
    """Refuse what compares token ids of student and teacher, where these have different tokenizers.

    Args:
        config: the run's settings.
        loss: the objective.
        source: where its sequences come from.
        label: both, in canonical form.
        pair: student and teacher.

    Raises:
        InputError: TOK-03, an objective on equal tokens.
        UsageError: a source, cache, metric or placement that does not go across tokenizers, with what would.
    """
    if pair.teacher_vocab is None:
        return
    needs = loss.needs()
    if needs.anything_of_teacher and needs.same_tokens:
        what = f"{offending_loss(loss).name} compares the two token by token, and their {pair.difference}"
        raise InputError("TOK-03", what, where=label, fix=ACROSS)
    if source.needs().same_tokens:
        what = f"@{source.name} draws each token from both models, and their tokenizers differ"
        raise UsageError("PAIR-09", what, where=label, fix="use @teacher, @student or the rows themselves")
    if needs.anything_of_teacher:
        _refuse_forms(config, label)
    _refuse_metrics(config)


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


def _refuse_forms(config: DistillConfig, label: str) -> None:
    if config.teacher_cache is not None:
        what = "a cache keeps what the teacher says after the student's own tokens, and the tokenizers differ"
        fix = "leave --teacher-cache out: the teacher runs beside the student"
        raise UsageError("PAIR-08", what, where=f"{label} with --teacher-cache", fix=fix)
    if config.hardware.shard != "ddp":
        what = f"{label} has a teacher of another tokenizer, which does not go with shards"
        raise UsageError(
            "CLI-22", what, where="--shard", fix="use --set hardware.shard=ddp, which keeps every model whole"
        )


def _refuse_metrics(config: DistillConfig) -> None:
    asked = config.evaluation.metrics if config.evaluation.metrics != EvalSettings().metrics else ()
    watched = config.monitor.metrics if config.monitor.every is not None else ()
    for where, names in {"--metric": asked, "monitor.metrics": watched}.items():
        bad = [name for name in names if describe(name).needs_teacher]
        if bad:
            rest = ",".join(name for name in names if name not in bad) or "perplexity"
            what = f"{', '.join(bad)} holds token ids against the teacher's, and the tokenizers differ"
            raise UsageError("PAIR-10", what, where=where, fix=f"measure {rest}")


# Checks an objective on layers inside the models against the models' sizes, before any weight is read.


def refuse_features(loss: DistillLoss, label: str, pair: ModelPair, cache: str | None) -> None:
    """Refuse layers that do not exist, and a cache, which keeps no layer but the last.

    Args:
        loss: the objective.
        label: how it was asked for.
        pair: student and teacher.
        cache: the teacher's cache, if one is used.

    Raises:
        UsageError: CACHE-09 for a cache, FEAT-01 for a layer that does not exist.
    """
    if not loss.needs().features:
        return
    if cache is not None:
        what = (
            f"{label} compares {' and '.join(sorted(loss.needs().features))} inside the models; a cache keeps neither"
        )
        raise UsageError("CACHE-09", what, where="--teacher-cache",
                         fix="leave the cache out, or leave hidden and attention out of the objective")  # fmt: skip
    if pair.teacher is not None and pair.teacher.server is not None:
        what = (
            f"{label} compares {' and '.join(sorted(loss.needs().features))} inside the models; a server shows neither"
        )
        fix = "give the teacher's folder, or leave hidden and attention out of the objective"
        raise UsageError("FEAT-03", what, where="--teacher", fix=fix)
    loss.matches(dims_of(pair))


def dims_of(pair: ModelPair) -> Dims:
    """Return the sizes of both models, from their config.json or the student's ``random:`` spec."""
    assert pair.teacher is not None, "an objective on features has a teacher"
    teacher = shape_of(_config(pair.teacher.path))
    if pair.student_is_random:
        return Dims(shape_of(random_config(pair.student, model_of(pair.teacher.path))), teacher)
    return Dims(shape_of(_config(pair.student)), teacher)


def _config(path: str) -> PreTrainedConfig:
    checked = open_folder(model_of(path))
    return build_config(checked.settings, str(checked.folder))


# Refuses what a teacher behind a server cannot give, before anything is asked of it.


def refuse_served(config: DistillConfig, source: Source, label: str, *, measured: bool) -> None:
    """Refuse sources and scores that need more of a teacher than a server shows.

    Args:
        config: the run's settings.
        source: where sequences come from.
        label: objective and source, in canonical form.
        measured: whether rows are measured after training.

    Raises:
        UsageError: SERVE-10, names what would do.
    """
    if config.teacher is None or not is_url(config.teacher):
        return
    refuse_wordless(source, label)
    refuse_measuring(config.evaluation.metrics, measured=measured)
    if config.monitor.every is not None:
        refuse_measuring(config.monitor.metrics, measured=True)
