"""Refuses objectives and sources that do not go together, with what would, before anything is read."""

from kdcli.config import DistillConfig
from kdcli.errors import UsageError
from kdcli.losses.base import DistillLoss
from kdcli.metrics.describe import describe
from kdcli.runs.ensemble import read_blend, refuse_blend
from kdcli.sources.base import Source
from kdcli.sources.describe import cards, supplying, writing
from kdcli.text import one_line


def refuse_pair(config: DistillConfig, loss: DistillLoss, source: Source, label: str) -> None:
    """Refuse what cannot be trained whatever the data hold.

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
        refuse_blend(config.teacher, f"@{source.name} asks one teacher", label, "give one of them, or another source")
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
    """Return the warning for an objective that takes what the student wrote for right answers; None otherwise.

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
        "several teachers speak as one": config.teacher is not None and read_blend(config.teacher) is not None,
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
