"""``kd clean``: removes checkpoints of finished runs and leftovers of killed writers."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from kdcli.config.yaml_file import read_config
from kdcli.errors import InputError
from kdcli.evaluation.run_access import exclusive, superseded_files
from kdcli.storage import atomic
from kdcli.storage.run_dir import CONFIG, EVAL, RunFolder
from kdcli.study.study_dir import check_folder, is_study
from kdcli.teachers.cache_files import is_cache

_DEEP = 4
"""How far below the folder asked for leftovers are looked for."""


@dataclass(frozen=True)
class Removed:
    """Something that is not needed.

    Args:
        path: relative to the folder asked for.
        size: bytes of its files.
    """

    path: str
    size: int


def clean(folder: Path, *, keep_checkpoints: bool, dry_run: bool) -> list[Removed]:
    """Remove checkpoints of finished runs and what killed writers left; a run that is not done keeps its checkpoints.

    Args:
        folder: a run, a study, a teacher cache, or a folder of such.
        keep_checkpoints: remove leftovers only.
        dry_run: only say what would be removed.

    Raises:
        InputError: there is no such folder, or nothing in it was written by ``kd``.
        BusyError: another process works in a run.
        MachineError: something cannot be removed.
    """
    check_folder(folder)
    removed, ours, places = [], False, list(_folders(folder, _DEEP))
    for inner in places:
        run, temporary = RunFolder(inner), atomic.leftovers(inner)
        ours = ours or run.is_run or is_study(inner) or is_cache(inner) or bool(temporary)
        found = [*_superseded(run, keep_checkpoints=keep_checkpoints), *temporary]
        removed += [Removed(str(path.relative_to(folder)), _size(path)) for path in found]
    if not ours:
        raise InputError("RUN-03", "nothing here was written by kd", where=str(folder), fix="give a run or a study")
    for inner in () if dry_run else places:
        run = RunFolder(inner)
        with exclusive(inner) if run.is_run else nullcontext():
            for path in _superseded(run, keep_checkpoints=keep_checkpoints):
                atomic.remove_folder(path) if path.is_dir() else atomic.remove_file(path)
            atomic.remove_temporaries(inner)
    return removed


def _folders(folder: Path, deep: int) -> Iterator[Path]:
    """Yield a folder and those inside it; no link is followed, nothing hidden is entered."""
    yield folder
    inner = sorted(folder.iterdir()) if deep else []
    for path in inner:
        if path.is_dir() and not path.is_symlink() and not path.name.startswith("."):
            yield from _folders(path, deep - 1)


def _superseded(run: RunFolder, *, keep_checkpoints: bool) -> list[Path]:
    """Return the checkpoints and kept answers that a finished run does not need; its settings may ask for the first."""
    if not (run.is_run and run.is_done):
        return []
    train = read_config(run.path / CONFIG).get("train")
    asked = train.plain().get("keep_finished") is True if train is not None else False
    found = superseded_files(run.path, keep_checkpoints=keep_checkpoints or asked)
    return [path for path in found if not path.is_symlink() and path not in _temporary(run.path)]


def _temporary(folder: Path) -> set[Path]:
    return {*atomic.leftovers(folder), *atomic.leftovers(folder / EVAL)}


def _size(path: Path) -> int:
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(file.lstat().st_size for file in path.rglob("*") if file.is_file())
