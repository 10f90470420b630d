"""What goes together with a teacher of another tokenizer, and how it reads the rows; no weight is read."""

from collections.abc import Iterator
from typing import Any

from kdcli.config import DataConfig, DistillConfig, EvalSettings
from kdcli.data.dataset import Role, TokenDataset
from kdcli.data.translate import matched
from kdcli.errors import InputError, UsageError
from kdcli.losses.base import DistillLoss
from kdcli.metrics.describe import describe
from kdcli.models.vocabulary import ACROSS
from kdcli.runs.model_facts import Pair
from kdcli.runs.workshop import Workshop, check_data_path
from kdcli.sources.base import Source

_ANY_LENGTH = 2**31 - 1


def refuse_across(config: DistillConfig, loss: DistillLoss, source: Source, label: str, pair: Pair) -> None:
    """Refuse what holds token ids of student and teacher against each other, where these have different tokenizers.

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
        what = f"{culprit(loss).name} compares the two token by token, and their {pair.difference}"
        raise InputError("TOK-03", what, where=label, fix=ACROSS)
    if source.needs().same_tokens:
        what = f"@{source.name} draws each token from both models, and their tokenizers differ"
        raise UsageError("PAIR-09", what, where=label, fix="use @teacher, @student or the rows themselves")
    if needs.anything_of_teacher:
        _refuse_forms(config, label)
    _refuse_metrics(config)


def culprit(loss: DistillLoss) -> DistillLoss:
    """Return the innermost part of an objective that asks for one tokenizer.

    >>> from kdcli.losses.build import build_objective
    >>> culprit(build_objective("ce+ramp:loss=fkl")).name, culprit(build_objective("revised:loss=uld")).name
    ('fkl', 'revised')
    """
    for child in _losses(tuple(getattr(loss, name) for name in type(loss).model_fields)):
        if child.needs().anything_of_teacher and child.needs().same_tokens:
            return culprit(child)
    return loss


def rows_of_teacher(
    pair: Pair, rows: TokenDataset, data: DataConfig, workshop: Workshop, *, role: Role = "train"
) -> TokenDataset | None:
    """Return training rows as a teacher of another tokenizer reads them, one for one; None where it reads as usual.

    Args:
        pair: student and teacher.
        rows: the rows as the student reads them.
        data: where they come from; no limit of length holds for the teacher but its own.
        workshop: what is loaded already.
        role: "prompts" where answers are not read.

    Raises:
        InputError: a row that the teacher cannot read.
    """
    if pair.teacher_vocab is None or pair.teacher is None:
        return None
    whole = data.model_copy(update={"max_length": _ANY_LENGTH, "max_prompt_length": None})
    return matched(rows, workshop.data(check_data_path(data.train, "--data"), pair.teacher, whole, role=role))


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


def _losses(value: Any) -> Iterator[DistillLoss]:
    """Yield the losses among the options of a loss, however deep in pairs and lists."""
    if isinstance(value, DistillLoss):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _losses(item)
