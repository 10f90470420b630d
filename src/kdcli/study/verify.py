"""``kd verify``: checks every digest of a run, a study or a model folder."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kdcli.errors import InputError, IntegrityError
from kdcli.storage import atomic, digests
from kdcli.storage.run_dir import ADAPTER, BEST, CONFIG, EVAL, MADE, MANIFEST, MODEL, REFERENCES, STATUS, RunFolder
from kdcli.study.study_dir import check_folder, is_study
from kdcli.teachers.cache_files import check_cache, is_cache

_DEEP = 4
"""How far below the folder asked for runs are looked for."""


@dataclass(frozen=True)
class Checked:
    """What was found of one folder.

    Args:
        folder: relative to the one asked for.
        what: run, checkpoint, model, evaluation, comparison, cache, text or folder.
        files: files whose digests were compared; 0 where something is wrong.
        problem: the one line that says what is wrong; empty if nothing is.
        where: the path that it is about.
        wrong: what is wrong there.
    """

    folder: str
    what: str
    files: int
    problem: str = ""
    where: str = ""
    wrong: str = ""

    @classmethod
    def damaged(cls, folder: str, what: str, where: object, wrong: str) -> "Checked":
        """Return the result for a folder that is not as it was."""
        return cls(folder, what, 0, f"{where}: {wrong}", str(where), wrong)

    @property
    def passed(self) -> bool:
        """Whether every digest is as recorded."""
        return not self.problem


def verify(folder: Path) -> list[Checked]:
    """Check everything below a folder that has digests.

    Args:
        folder: a run, a study, or any folder that kd wrote.

    Raises:
        InputError: there is no such folder, or nothing in it has digests.
    """
    check_folder(folder)
    found = [_checked(folder, *one) for one in _pieces(folder, _DEEP)]
    if not found:
        raise InputError("RUN-03", "nothing here has digests", where=str(folder), fix="give a run or a study")
    return found


Piece = tuple[Path, str, Callable[[Path], int]]


def _pieces(folder: Path, deep: int) -> Iterator[Piece]:
    """Yield what is to be checked, in reading order."""
    if (folder / digests.NAME).is_file() or is_study(folder):
        yield folder, digests.kind_of(folder), digests.verify_digests
    if _looks_like_run(folder):
        yield from _run(folder)
        return
    if (folder / MANIFEST).is_file():
        yield folder, "evaluation" if folder.parent.name == REFERENCES else "folder", _check_folder
        return
    if is_cache(folder):
        yield folder, "cache", check_cache
        return
    if deep:
        for inner in sorted(folder.iterdir()):
            if inner.is_dir() and not inner.is_symlink() and not inner.name.startswith("."):
                yield from _pieces(inner, deep - 1)


def _looks_like_run(folder: Path) -> bool:
    """Whether this is a run, even one whose manifest is gone or damaged."""
    if (folder / CONFIG).is_file() and (folder / STATUS).is_file():
        return True
    try:
        return RunFolder(folder).is_run
    except IntegrityError:
        return (folder / CONFIG).is_file()


def _run(folder: Path) -> Iterator[Piece]:
    yield folder, "run", _check_run
    for path in sorted(folder.glob("checkpoint-*")):
        yield path, "checkpoint", _check_folder
    if (folder / MODEL).exists() or _says_done(folder):
        yield folder / MODEL, "model", _check_folder
    if (folder / BEST).exists():
        yield folder / BEST, "model", _check_folder
    if (folder / ADAPTER).exists():
        yield folder / ADAPTER, "model", _check_folder
    for path in sorted(folder.glob(f"{EVAL}/*")):
        if path.is_dir() and not path.name.startswith("."):
            yield path, "evaluation", _check_folder
    for path in sorted(folder.glob(f"{MADE}/*")):
        if path.is_dir() and not path.name.startswith("."):
            yield path, "text", _check_folder


def _says_done(folder: Path) -> bool:
    try:
        return RunFolder(folder).status().get("state") == "done"
    except IntegrityError:
        return False


def _check_folder(folder: Path) -> int:
    return len(atomic.verify_folder(folder)["files"]) + 1


def _check_run(folder: Path) -> int:
    """Check the small files of a run against the digests taken when it was done."""
    run = RunFolder(folder)
    if not (folder / MANIFEST).is_file():
        raise digests.broken(folder / MANIFEST, "is missing")
    run.manifest()
    status = run.status()
    files = status.get("files", {})
    digests.check_files({folder / name: digest for name, digest in files.items()})
    return len(files) + bool(status)


def _checked(root: Path, folder: Path, what: str, check: Callable[[Path], int]) -> Checked:
    name = folder.relative_to(root).as_posix()
    try:
        return Checked(name, what, check(folder))
    except (IntegrityError, InputError) as error:
        return Checked.damaged(name, what, error.where, error.what)
    except OSError as error:
        return Checked.damaged(name, what, folder, f"cannot be read: {error.strerror}")
    except (ValueError, KeyError, TypeError, AttributeError, json.JSONDecodeError):
        return Checked.damaged(name, what, folder, "its records are damaged")
