"""Benchmarks of lm-evaluation-harness on a loaded model, in one table with the other scores."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from kdcli.bounded import ANYWHERE, SHARE, Bounds
from kdcli.config.sections import BenchmarkConfig
from kdcli.errors import InputError, KDError, MachineError
from kdcli.evaluation.lm_eval.tasks import Harness, LmEval, Tasks, places_of
from kdcli.evaluation.records import ScoreInfo
from kdcli.events import Event, Report
from kdcli.metrics.score import Better, Score, ratio
from kdcli.models.load import LanguageModel
from kdcli.statistics import Estimate
from kdcli.statistics.estimate import t_estimate
from kdcli.text import one_line
from kdcli.version import __version__

# A benchmark's scores document by document, so that two models can be paired on them.


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


_NO_METRIC = frozenset({"alias", "name", "sample_len", "sample_count"})


@dataclass(frozen=True)
class Benchmarked:
    """What the tasks say.

    Args:
        infos: one entry per score.
        estimates: score -> value with the interval that follows from the harness' standard error.
        documents: how many documents were answered.
        protocol: task or group -> everything that its numbers follow from, but the model.
        values: score -> what each document adds to it; without the scores that are no mean over documents.
    """

    infos: tuple[ScoreInfo, ...]
    estimates: dict[str, Estimate]
    documents: int
    protocol: dict[str, str]
    values: dict[str, tuple[float, ...]] = field(default_factory=dict)


def benchmark(
    model: LanguageModel, config: BenchmarkConfig, report: Report, harness: Harness | None = None
) -> Benchmarked:
    """Run tasks on a model.

    Args:
        model: a loaded model.
        config: names, files or folders of tasks, and how they are asked.
        report: called with progress events.
        harness: what runs them; default lm-evaluation-harness.

    Raises:
        UsageError: BENCH-01, the harness is not installed.
        InputError: BENCH-02, no such task or one that cannot be read; BENCH-03, one that fails.
        MachineError: BENCH-04, its documents cannot be had.
    """
    ours = harness or LmEval()
    return run_tasks(model, load_tasks(ours, config), config, report, ours)


def load_tasks(harness: Harness, config: BenchmarkConfig) -> Tasks:
    """Load all tasks that the settings name, so that a wrong name is found before any work is done.

    Raises:
        InputError: BENCH-02, no such task or one that cannot be read.
        MachineError: BENCH-04, its documents cannot be had.
    """
    tasks = Tasks()
    for spec in config.tasks:
        tasks += _loaded(harness, spec)
    return tasks


@cache
def check_tasks(tasks: tuple[str, ...]) -> None:
    """Load tasks once, so that a study finds a wrong one before anything is trained.

    Raises:
        UsageError: BENCH-01, the harness is not installed.
        InputError: BENCH-02, no such task or one that cannot be read.
        MachineError: BENCH-04, its documents cannot be had.
    """
    if tasks:
        load_tasks(LmEval(), BenchmarkConfig(tasks=tasks))


def run_tasks(
    model: LanguageModel, tasks: Tasks, config: BenchmarkConfig, report: Report, harness: Harness
) -> Benchmarked:
    """Run loaded tasks on a model.

    Raises:
        InputError: BENCH-03, a task fails or gives no number.
    """
    report(Event("stage", "benchmarks"))
    try:
        found = harness.run(model, tasks, config, report)
    except (KDError, MemoryError):
        raise
    except Exception as error:
        # Tasks bring their own code, which fails in its own ways.
        what = f"the harness fails: {type(error).__name__}: {one_line(str(error), 160)}"
        raise InputError("BENCH-03", what, where="--tasks", fix="try each task alone, with --debug") from error
    return read_results(found, harness.version)


def read_results(found: Mapping[str, Any], version: str) -> Benchmarked:
    """Turn the harness' results into scores; values stay as the harness gives them, most from 0 to 1.

    Args:
        found: what its ``evaluate`` returns.
        version: of the harness.

    Raises:
        InputError: BENCH-03, there is no number in them.

    >>> found = {"results": {"t": {"acc,none": 0.5, "acc_stderr,none": 0.1, "sample_len": 26}}}
    >>> round(read_results(found, "0").estimates["t_acc"].low, 3)
    0.294
    """
    infos, estimates, protocol, values = [], {}, {}, {}
    for task, numbers in found.get("results", {}).items():
        facts = "|".join([*_facts(found, task, version), f"n:{numbers.get('sample_len', 0)}", f"kd:{__version__}"])
        for key, value in numbers.items():
            metric, _, chosen = key.partition(",")
            if metric in _NO_METRIC or metric.endswith("_stderr") or not _is_number(value):
                continue
            name = "_".join([task, metric, *([chosen] if chosen not in ("", "none") else [])])
            error = numbers.get(f"{metric}_stderr,{chosen}")
            each = values_of(found, task, metric, chosen, value)
            estimates[name] = _estimate(value, error, numbers.get("sample_len", 0), bounds_of(each))
            better = found.get("higher_is_better", {}).get(task, {}).get(metric)
            direction = {True: "higher", False: "lower"}.get(better, "neither")
            infos.append(ScoreInfo(name, direction, task, f"{name}|{facts}", "tasks"))
            protocol[task] = facts
            if each is not None:
                values[name] = each
    if not infos:
        raise InputError("BENCH-03", "the tasks give no number", where="--tasks", fix="look at their metric_list")
    documents = sum(int(one.get("effective", 0)) for one in found.get("n-samples", {}).values())
    return Benchmarked(tuple(infos), estimates, documents, protocol, values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _estimate(value: float, error: Any, documents: int, bounds: Bounds) -> Estimate:
    """Return a value with its interval, without one where the harness knows no standard error ("N/A")."""
    known = _is_number(error) and math.isfinite(error) and documents > 1
    return t_estimate(float(value), float(error) if known else None, max(documents, 1), "examples", bounds=bounds)


def _facts(found: Mapping[str, Any], task: str, version: str) -> list[str]:
    """Return what the scores of a task depend on: library, version, few-shot examples, and documents."""
    shots, number = found.get("n-shot", {}).get(task), found.get("versions", {}).get(task)
    asked = _digest(found, task)
    return [
        f"lib:lm_eval-{version}",
        *([f"version:{one_line(str(number), 20)}"] if number is not None else []),
        *([f"shots:{shots}"] if shots is not None else []),
        *([f"data:{asked}"] if asked else []),
    ]


def _digest(found: Mapping[str, Any], task: str) -> str:
    """Return eight hex digits over the documents, prompts and targets of a task, or of a group's tasks."""
    samples = found.get("samples") or {}
    members = [task] if task in samples else found.get("group_subtasks", {}).get(task, [])
    parts = [
        [one.get(name) for name in ("doc_id", "doc_hash", "prompt_hash", "target_hash")]
        for member in members
        for one in samples.get(member, [])
    ]
    if not parts:
        inner = [_digest(found, member) for member in members if member != task]
        return hashlib.sha256("".join(inner).encode()).hexdigest()[:8] if any(inner) else ""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:8]


def _loaded(harness: Harness, spec: str) -> Tasks:
    """Load the tasks that one word names: known to the harness, a file, or all files of a folder."""
    tasks = Tasks()
    try:
        for name, folder in places_of(spec):
            tasks += harness.load(name, folder)
    except (KDError, MemoryError):
        raise
    except OSError as error:
        what = f"its documents cannot be had: {one_line(str(error), 160)}"
        fix = "fetch them where there is a network, or use a task file with local data"
        raise MachineError("BENCH-04", what, where=one_line(spec, 80), fix=fix) from error
    except Exception as error:
        # Tasks bring their own code, which fails in its own ways.
        reason = one_line(str(error).strip("'\""), 160) or type(error).__name__
        fix = "names are those of `lm-eval ls tasks`; a file must be one that it reads"
        raise InputError("BENCH-02", f"cannot be loaded: {reason}", where=one_line(spec, 80), fix=fix) from error
    return tasks
