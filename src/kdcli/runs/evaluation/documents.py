"""A benchmark's scores document by document, so that two models can be paired on them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from kdcli.bounded import ANYWHERE, SHARE, Bounds
from kdcli.metrics.score import Better, Score, ratio

_CLOSE = 1e-9


def values_of(found: Mapping[str, Any], task: str, metric: str, chosen: str, value: float) -> tuple[float, ...] | None:
    """Return what each document adds to a score, in the order of the documents.

    Args:
        found: what the harness' ``evaluate`` returns.
        task: task or group.
        metric: the metric's name.
        chosen: the filter that the answers went through.
        value: the score.

    Returns:
        one number per document; None where the score is not their mean, as a perplexity is not, or a group's mean
        over tasks of different sizes.

    >>> said = [{"doc_id": 1, "filter": "none", "acc": 0.0}, {"doc_id": 0, "filter": "none", "acc": 1.0}]
    >>> values_of({"samples": {"t": said}}, "t", "acc", "none", 0.5)
    (1.0, 0.0)
    """
    samples = found.get("samples") or {}
    values = []
    for member in _members(found, task):
        said = sorted((one for one in samples.get(member, []) if one.get("filter") == chosen), key=_place)
        values += [one.get(metric) for one in said]
    if not values or not all(isinstance(one, int | float) and math.isfinite(one) for one in values):
        return None
    numbers = tuple(float(one) for one in values)
    same = math.isclose(math.fsum(numbers) / len(numbers), value, rel_tol=_CLOSE, abs_tol=_CLOSE)
    return numbers if same else None


def score_of(name: str, value: float, values: Sequence[float] | None, better: Better) -> Score:
    """Return a benchmark's score: a mean over documents, or a number about all of them.

    What is 0 or 1 on every document is a share of documents.

    >>> score_of("t_acc", 0.5, [1.0, 0.0], "higher").value
    0.5
    """
    if values is None:
        return Score(name, None, np.asarray, better, corpus=value)
    numbers = np.array(values, dtype=np.float64)
    sums = np.stack([numbers, np.ones_like(numbers)], axis=-1)
    return Score(name, sums, ratio(), better, bounds=bounds_of(values))


def bounds_of(values: Sequence[float] | None) -> Bounds:
    """Return the bounds of a benchmark's score, from what each document adds to it.

    >>> bounds_of([1.0, 0.0]), bounds_of(None)
    ((0.0, 1.0), (-inf, inf))
    """
    return SHARE if values is not None and {0.0, 1.0}.issuperset(values) else ANYWHERE


def _place(sample: Mapping[str, Any]) -> int:
    return sample["doc_id"]


def _members(found: Mapping[str, Any], task: str) -> Iterator[str]:
    """Yield a task, or the tasks of a group and of the groups in it."""
    inner = [one for one in found.get("group_subtasks", {}).get(task, []) if one != task]
    if not inner:
        yield task
    for one in inner:
        yield from _members(found, one)
