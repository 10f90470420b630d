"""The files of tasks, and what they name: known before the harness is asked."""

import importlib.metadata
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdcli import durable, plugins
from kdcli.config import BenchmarkConfig
from kdcli.errors import InputError
from kdcli.text import one_line

_SUFFIXES = (".yaml", ".yml")
_WORD = re.compile(r"[\w./-]+")


def asked_of(config: BenchmarkConfig) -> dict[str, Any]:
    """Return what the numbers of tasks follow from, as far as it is known before they run.

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
        "tasks": {spec: durable.digest_files(found) if found else "" for spec, found in files.items()},
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
    """Yield a task file and the files beside it that it names: data, functions, and other YAML with what that names."""
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
