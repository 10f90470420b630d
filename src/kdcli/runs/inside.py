"""Checks an objective on layers inside the models against the models' sizes, before any weight is read."""

from transformers import PreTrainedConfig

from kdcli.errors import UsageError
from kdcli.losses.base import DistillLoss
from kdcli.losses.layers import Dims
from kdcli.models.folder import open_folder
from kdcli.models.observe import shape_of
from kdcli.models.random import random_config
from kdcli.models.weights import build_config
from kdcli.runs.folder import model_of
from kdcli.runs.model_facts import Pair


def refuse_features(loss: DistillLoss, label: str, pair: Pair, cache: str | None) -> None:
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


def dims_of(pair: Pair) -> Dims:
    """Return the sizes of both models, from their config.json or the student's ``random:`` spec."""
    assert pair.teacher is not None, "an objective on features has a teacher"
    teacher = shape_of(_config(pair.teacher.path))
    if pair.student_is_random:
        return Dims(shape_of(random_config(pair.student, model_of(pair.teacher.path))), teacher)
    return Dims(shape_of(_config(pair.student)), teacher)


def _config(path: str) -> PreTrainedConfig:
    checked = open_folder(model_of(path))
    return build_config(checked.settings, str(checked.folder))
