"""The parts of lm-evaluation-harness that are used: loading tasks and running them."""

import contextlib
import importlib
import importlib.metadata
import importlib.util
import io
import logging
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from kdcli.config.sections import BenchmarkConfig
from kdcli.data.files import offline_if_unreachable
from kdcli.errors import InputError, UsageError
from kdcli.events import Event, Report, silent
from kdcli.models.load import LanguageModel
from kdcli.models.plain import plain_generation
from kdcli.registry import plugins
from kdcli.storage import atomic
from kdcli.text import one_line

_BAR = re.compile(r"\| (\d{1,12})/(\d{1,12}) \[")
_SEEDS = {"python": 0, "numpy": 1234, "torch": 1234, "shots": 1234}
"""The harness' own defaults."""


@dataclass(frozen=True)
class Tasks:
    """What is to be run.

    Args:
        tasks: name -> task.
        groups: name -> group, which adds up the scores of its tasks.
    """

    tasks: dict[str, Any] = field(default_factory=dict)
    groups: dict[str, Any] = field(default_factory=dict)

    def __add__(self, other: "Tasks") -> "Tasks":
        return Tasks(self.tasks | other.tasks, self.groups | other.groups)


@runtime_checkable
class Harness(Protocol):
    """Something that runs tasks."""

    @property
    def version(self) -> str:
        """The library's version."""
        ...

    def load(self, spec: str, folder: Path | None) -> Tasks:
        """Return the tasks of a name, or of a file in a folder; file names inside are relative to the folder."""
        ...

    def run(self, model: LanguageModel, tasks: Tasks, config: BenchmarkConfig, report: Report) -> Mapping[str, Any]:
        """Return results as lm-evaluation-harness' ``evaluate`` does."""
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
        self._managers: dict[tuple[bool, Path | None], Any] = {}

    def load(self, spec: str, folder: Path | None) -> Tasks:
        """Return the tasks of a name, or of a file in a folder."""
        group = None if folder is None else _group_in(Path(spec))
        with _seeded(), _quiet(silent), offline_if_unreachable(), contextlib.chdir(folder or Path.cwd()):
            found = self._manager(folder is None, folder if group else None).load([group or spec])
        return Tasks(dict(found["tasks"]), dict(found.get("groups", {})))

    def _manager(self, known: bool, around: Path | None) -> Any:
        """Return what finds tasks: with the index of all known ones, which takes seconds, or those around a file."""
        if (known, around) not in self._managers:
            make = importlib.import_module("lm_eval.tasks").TaskManager
            self._managers[known, around] = make(include_defaults=known, include_path=around)
        return self._managers[known, around]

    def run(self, model: LanguageModel, tasks: Tasks, config: BenchmarkConfig, report: Report) -> Mapping[str, Any]:
        """Return the harness' results; it computes on the model given, with its tokenizer."""
        wrap = importlib.import_module("lm_eval.models.huggingface").HFLM
        with _seeded(), _quiet(report):
            for task in tasks.tasks.values():
                _set_shots(task, config.shots)
            wrapped = wrap(pretrained=model.model, tokenizer=model.tokenizer, batch_size=config.batch_size)
            evaluate = importlib.import_module("lm_eval.evaluator").evaluate
            with plain_generation(model):
                return evaluate(wrapped, {"tasks": tasks.tasks, "groups": tasks.groups}, limit=config.limit)


def _group_in(file: Path) -> str | None:
    """Return the group that a file names; its tasks are found by name in the files around it."""
    lines = file.read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip().strip("'\"") for line in lines if line.startswith("group:")]
    return names[0] if names else None


def _set_shots(task: Any, shots: int | None) -> None:
    """Set the number of few-shot examples of a task; one that sets 0 itself keeps it, as in the harness."""
    own = task.get_config("num_fewshot")
    if shots is not None and own != 0:
        task.set_config(key="num_fewshot", value=shots)
    elif own is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=_SEEDS["shots"])


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """Seed the global generators, which tasks may draw from, and put them back."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(_SEEDS["python"])
        np.random.seed(_SEEDS["numpy"])
        torch.manual_seed(_SEEDS["torch"])
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


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


# The files of tasks, and what they name: known before the harness is asked.


_SUFFIXES = (".yaml", ".yml")
_WORD = re.compile(r"[\w./-]+")


def asked_of(config: BenchmarkConfig) -> dict[str, Any]:
    """Return what the scores of tasks depend on, as far as it is known before they run.

    Args:
        config: names, files or folders of tasks, and how they are asked.

    Returns:
        the harness' version, shots, limit, and for each task the sha256 of its files or, where the harness knows
        the name, an empty word.

    Raises:
        InputError: BENCH-02, a file or folder of tasks that is not there.
    """
    there = importlib.util.find_spec("lm_eval") is not None
    files = {spec: {file for task in _files_of(spec) for file in _named(task)} for spec in config.tasks}
    return {
        "version": importlib.metadata.version("lm_eval") if there else "",
        "shots": config.shots,
        "limit": config.limit,
        "tasks": {spec: atomic.digest_files(found) if found else "" for spec, found in files.items()},
    }


def places_of(spec: str) -> list[tuple[str, Path | None]]:
    """Return name and folder of each task: a path that is there, else a name known to the harness."""
    files = _files_of(spec)
    if files:
        plugins.check(spec, f"task {one_line(spec, 200)}")
    return [(str(file), file.parent) for file in files] or [(spec, None)]


def _files_of(spec: str) -> list[Path]:
    """Return the task files that one word names, none where it is a name."""
    path = Path(spec).expanduser()
    files = _task_files(path) if path.is_dir() else [path] if path.suffix in _SUFFIXES else []
    if path.is_dir() and not files:
        what = "no task file (YAML with a task name)"
        raise InputError("BENCH-02", what, where=one_line(spec), fix="write one as lm-evaluation-harness reads it")
    if any(not file.is_file() for file in files):
        what = f"not found; looked in {one_line(str(Path.cwd()))}"
        raise InputError("BENCH-02", what, where=one_line(spec), fix="check the path")
    return [file.resolve() for file in files]


def _named(file: Path, known: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """Yield a task file and the files that it names: data, functions, and other YAML with what that names."""
    if file in known:
        return
    yield file
    if file.suffix not in _SUFFIXES:
        return
    for word in dict.fromkeys(_WORD.findall(file.read_text(encoding="utf-8", errors="replace"))):
        for other in (file.parent / word, file.parent / f"{word.partition('.')[0]}.py"):
            if other.is_file():
                yield from _named(other.resolve(), known | {file})


def _task_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix in _SUFFIXES and _names_a_task(file))


def _names_a_task(file: Path) -> bool:
    """Whether a file describes a task rather than defaults that others include."""
    try:
        return any(line.startswith("task:") for line in file.read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError):
        return False
