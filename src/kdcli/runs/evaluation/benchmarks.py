"""Benchmarks of lm-evaluation-harness on a model that is already loaded, in one table with the other scores."""

import contextlib
import importlib
import importlib.metadata
import importlib.util
import io
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from kdcli import __version__
from kdcli.config import BenchmarkConfig
from kdcli.engine.events import Event, Report, silent
from kdcli.errors import InputError, KDError, MachineError, UsageError
from kdcli.models.load import LanguageModel
from kdcli.runs.records import ScoreInfo
from kdcli.statistics import Estimate
from kdcli.statistics.estimate import t_estimate
from kdcli.text import one_line

_SUFFIXES = (".yaml", ".yml")
_BAR = re.compile(r"\| (\d{1,12})/(\d{1,12}) \[")
_NO_METRIC = frozenset({"alias", "name", "sample_len", "sample_count"})


@dataclass(frozen=True)
class Benchmarked:
    """What the tasks say.

    Args:
        infos: one entry per score.
        estimates: score -> value with the interval that follows from the harness' standard error.
        documents: how many documents were answered.
        protocol: version and hash of each task.
    """

    infos: tuple[ScoreInfo, ...]
    estimates: dict[str, Estimate]
    documents: int
    protocol: dict[str, str]


@runtime_checkable
class Harness(Protocol):
    """The part of lm-evaluation-harness that is used."""

    version: str

    def load(self, spec: str, folder: Path | None) -> list[Any]:
        """Return the tasks of a name, or of a file in a folder; file names inside are relative to the folder."""
        ...

    def run(self, model: LanguageModel, tasks: list[Any], config: BenchmarkConfig) -> Mapping[str, Any]:
        """Return the harness' results."""
        ...


class LmEval:
    """lm-evaluation-harness, imported when it is needed.

    Raises:
        UsageError: BENCH-01, it is not installed.
    """

    def __init__(self) -> None:
        if importlib.util.find_spec("lm_eval") is None:
            fix = 'install it: pip install "kdcli[bench]"'
            raise UsageError("BENCH-01", "lm-evaluation-harness is not installed", where="--tasks", fix=fix)
        self.version = importlib.metadata.version("lm_eval")
        self._managers: dict[bool, Any] = {}

    def load(self, spec: str, folder: Path | None) -> list[Any]:
        """Return the tasks of a name, or of a file in a folder."""
        known = folder is None  # reading the index of all known tasks takes seconds
        if known not in self._managers:
            library = importlib.import_module("lm_eval.tasks")
            self._managers[known] = library.TaskManager(include_defaults=known)
        with contextlib.chdir(folder or Path.cwd()):
            return [*self._managers[known].load([spec])["tasks"].values()]

    def run(self, model: LanguageModel, tasks: list[Any], config: BenchmarkConfig) -> Mapping[str, Any]:
        """Return the harness' results; it computes on the model given, with its tokenizer."""
        wrap = importlib.import_module("lm_eval.models.huggingface").HFLM
        spoken = wrap(pretrained=model.model, tokenizer=model.tokenizer, batch_size=config.batch_size)
        return importlib.import_module("lm_eval").simple_evaluate(
            spoken, tasks=tasks, num_fewshot=config.shots, limit=config.limit, log_samples=False,
        )  # fmt: skip


def benchmark(
    model: LanguageModel, config: BenchmarkConfig, report: Report, harness: Harness | None = None
) -> Benchmarked:
    """Run tasks on a model.

    Args:
        model: a loaded model.
        config: names, files or folders of tasks, and how they are asked.
        report: told which task is at work.
        harness: what runs them; default lm-evaluation-harness.

    Raises:
        UsageError: BENCH-01, the harness is not installed.
        InputError: BENCH-02, no such task or one that cannot be read; BENCH-03, one that fails.
        MachineError: BENCH-04, its documents cannot be had.
    """
    ours = harness or LmEval()
    report(Event("stage", "benchmarks"))
    with _quiet(silent):
        tasks = [task for spec in config.tasks for task in _loaded(ours, spec)]
    with _quiet(report):
        try:
            found = ours.run(model, tasks, config)
        except (KDError, MemoryError):
            raise
        except Exception as error:
            # Tasks bring their own code, which fails in its own ways.
            what = f"the harness fails: {type(error).__name__}: {one_line(str(error), 160)}"
            raise InputError("BENCH-03", what, where="--tasks", fix="try each task alone, with --debug") from error
    return read_results(found, ours.version)


def read_results(found: Mapping[str, Any], version: str) -> Benchmarked:
    """Turn the harness' results into scores; values stay as the harness gives them, most from 0 to 1.

    Args:
        found: what ``simple_evaluate`` returns.
        version: of the harness.

    >>> found = {"results": {"t": {"acc,none": 0.5, "acc_stderr,none": 0.1}}, "n-samples": {"t": {"effective": 26}}}
    >>> round(read_results(found, "0").estimates["t_acc"].low, 3)
    0.294
    """
    infos, estimates, protocol = [], {}, {}
    for task, numbers in found.get("results", {}).items():
        count = int(found.get("n-samples", {}).get(task, {}).get("effective", 0))
        protocol[task] = "|".join(_facts(found, task, version))
        for key, value in numbers.items():
            metric, _, chosen = key.partition(",")
            if metric in _NO_METRIC or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            name = "_".join([task, metric, *([chosen] if chosen not in ("", "none") else [])])
            error = numbers.get(f"{metric}_stderr,{chosen}")
            known = float(error) if isinstance(error, int | float) and count > 1 else None
            estimates[name] = t_estimate(float(value), known, max(count, 1), "examples")
            better = found.get("higher_is_better", {}).get(task, {}).get(metric)
            direction = {True: "higher", False: "lower"}.get(better, "neither")
            signature = "|".join([task, metric, *_facts(found, task, version), f"n:{count}", f"kd:{__version__}"])
            infos.append(ScoreInfo(name, direction, task, signature, "tasks"))
    if not infos:
        raise InputError("BENCH-03", "the tasks give no number", where="--tasks", fix="look at their metric_list")
    total = sum(int(one.get("effective", 0)) for one in found.get("n-samples", {}).values())
    return Benchmarked(tuple(infos), estimates, total, protocol)


def _facts(found: Mapping[str, Any], task: str, version: str) -> list[str]:
    shots, number = found.get("n-shot", {}).get(task), found.get("versions", {}).get(task)
    return [
        f"lib:lm_eval-{version}",
        *([f"version:{one_line(str(number), 20)}"] if number is not None else []),
        *([f"shots:{shots}"] if shots is not None else []),
    ]


def _loaded(harness: Harness, spec: str) -> list[Any]:
    """Load the tasks that one word names: known to the harness, a file, or all files of a folder."""
    path = Path(spec).expanduser()
    files = _task_files(path) if path.is_dir() else [path] if path.suffix in _SUFFIXES else []
    if path.is_dir() and not files:
        what = "no task file (YAML with a task name)"
        raise InputError("BENCH-02", what, where=one_line(spec), fix="write one as lm-evaluation-harness reads it")
    if any(not file.is_file() for file in files):
        what = f"not found; looked in {one_line(str(Path.cwd()))}"
        raise InputError("BENCH-02", what, where=one_line(spec), fix="check the path")
    asked = [(str(file.resolve()), file.resolve().parent) for file in files] or [(spec, None)]
    try:
        return [task for name, folder in asked for task in harness.load(name, folder)]
    except MemoryError:
        raise
    except OSError as error:
        what = f"its documents cannot be had: {one_line(str(error), 160)}"
        fix = "fetch them where there is a network, or use a task file with data beside it"
        raise MachineError("BENCH-04", what, where=one_line(spec, 80), fix=fix) from error
    except Exception as error:
        # Tasks bring their own code, which fails in its own ways.
        reason = one_line(str(error).strip("'\""), 160)
        fix = "names are those of `lm-eval ls tasks`; a file must be one that it reads"
        raise InputError("BENCH-02", f"cannot be loaded: {reason}", where=one_line(spec, 80), fix=fix) from error


def _task_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix in _SUFFIXES and _names_a_task(file))


def _names_a_task(file: Path) -> bool:
    """Whether a file describes a task rather than defaults that others include."""
    try:
        return any(line.startswith("task:") for line in file.read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError):
        return False


class _Bars(io.TextIOBase):
    """Takes what the harness' progress bars draw, and reports how far they are."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def write(self, text: str) -> int:
        """Read the counts of a bar, as in ``| 12/120 [00:01``."""
        for done, total in _BAR.findall(text):
            self._report(Event("progress", "benchmarks", done=int(done), total=int(total)))
        return len(text)


@contextlib.contextmanager
def _quiet(report: Report) -> Iterator[None]:
    """Keep the harness' log to errors, and turn its bars into reports."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(_Bars(report)):
            yield
    finally:
        logger.setLevel(before)
