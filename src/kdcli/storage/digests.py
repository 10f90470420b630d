"""sha256 digests of output files: a study's settings, tables, pictures and report; rows that a command wrote."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdcli.errors import IntegrityError, MachineError
from kdcli.storage import atomic, stored

NAME = "digests.json"
_SEALED = (
    "comparison.json",
    "costs.csv",
    "curves.png",
    "curves.svg",
    "report.html",
    "results.parquet",
    "samples.parquet",
    "study.json",
    "study.yaml",
    "table.csv",
    "table.html",
    "table.json",
    "table.md",
    "table.tex",
    "tuning.json",
    "tuning.md",
)
_BEFORE = ("study.json", "study.yaml", "tuning.json", "tuning.md")
"""What is written before the cells run."""


@dataclass(frozen=True)
class _Digests:
    """The shape of ``digests.json``."""

    kind: str
    files: dict[str, str]


def write_digests(folder: Path, names: Sequence[str] = _SEALED, kind: str = "comparison") -> None:
    """Write the digests of the files that a command writes into its folder; by default, those of a comparison."""
    digests = {name: atomic.digest_file(folder / name) for name in names if (folder / name).is_file()}
    before = _read(folder / NAME) if (folder / NAME).is_file() else {}
    _write(folder / NAME, digests | {name: before[name] for name in _BEFORE if name in before}, kind)


def remove_digests(folder: Path) -> None:
    """Take out the digests of the files that a comparison is about to write anew, until they are sealed again.

    So what a kill leaves between the two is not taken for damage: such files have no digest.
    """
    path = folder / NAME
    if path.is_file():
        _write(path, {name: digest for name, digest in _read(path).items() if name in _BEFORE})


def replace_file(path: Path, text: str) -> None:
    """Write a file whose digest counts from now on, unless it says so already; makes its folder's digests.

    Raises:
        MachineError: the disk is full or may not be written.
    """
    digests = path.parent / NAME
    known = _read(digests) if digests.is_file() else {}
    wanted = hashlib.sha256(text.encode()).hexdigest()
    if known.get(path.name) == wanted and path.is_file() and atomic.digest_file(path) == wanted:
        return
    if path.name in known:
        _write(digests, {name: digest for name, digest in known.items() if name != path.name})
    atomic.write_file(path, text)
    _write(digests, {**known, path.name: wanted})


def remove_file(path: Path) -> None:
    """Remove a file and its digest.

    Raises:
        MachineError: it may not be removed.
    """
    digests = path.parent / NAME
    if digests.is_file() and path.name in (known := _read(digests)):
        _write(digests, {name: digest for name, digest in known.items() if name != path.name})
    atomic.remove_file(path)


def update_digest(path: Path) -> None:
    """Bring a file's digest up to date after it was written on purpose; those of other files stay what they are."""
    digests = path.parent / NAME
    if path.name in _SEALED and digests.is_file():
        _write(digests, {**_read(digests), path.name: atomic.digest_file(path)})


def _write(path: Path, files: dict[str, str], kind: str = "comparison") -> None:
    text = json.dumps({"kind": kind, "files": files}, indent=1, sort_keys=True) + "\n"
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        atomic.write_file(path, text)


def _read(path: Path) -> dict[str, str]:
    fix = "remove this file, then run the command that wrote the folder again; what is finished is kept"
    atomic.refuse_link(path)
    return stored.read_record(path, _Digests, fix=fix).files


def kind_of(folder: Path) -> str:
    """Return what a folder's digests say it is: text, rows, or a comparison; so, too, where they cannot be read."""
    try:
        kind = stored.read_record(folder / NAME, _Digests).kind
        return kind if kind in ("text", "rows") else "comparison"
    except (IntegrityError, MachineError):
        return "comparison"


def check_named(folder: Path, names: Sequence[str], fix: str, *, needed: bool = False) -> None:
    """Check some files of a folder against its digests.

    Args:
        folder: the folder.
        names: the files.
        fix: how to make them again.
        needed: whether each must be there with a digest; else those without one are passed over.

    Raises:
        IntegrityError: names the first that has none, is missing or differs.
    """
    path = folder / NAME
    if not path.is_file():
        if needed:
            raise broken(path, f"is missing: nothing says what {names[0]} must be", fix)
        return
    known = _read(path)
    for name in names:
        if needed and name not in known:
            raise broken(folder / name, f"has no digest in {NAME}: it was not finished", fix)
    check_files({folder / name: known[name] for name in names if name in known}, fix)


def verify_digests(folder: Path) -> int:
    """Check the files that a folder's digests name.

    Returns:
        how many they are.

    Raises:
        IntegrityError: names the first that is not what it was.
    """
    path = folder / NAME
    named = {folder / name: digest for name, digest in _read(path).items()}
    check_files(named)
    return len(named) + 1


def check_files(digests: Mapping[Path, str], fix: str = stored.AGAIN) -> None:
    """Check files against digests.

    Args:
        digests: file -> sha256.
        fix: what to do about one that differs.

    Raises:
        IntegrityError: names the first that is missing or differs.
    """
    for path, digest in digests.items():
        if not path.is_file() or path.is_symlink():
            raise broken(path, "is missing", fix)
        if atomic.digest_file(path) != digest:
            raise broken(path, "digest differs from the recorded one", fix)


def broken(path: Path, what: str, fix: str = stored.AGAIN) -> IntegrityError:
    """Return the error that names a file."""
    return IntegrityError("RUN-01", what, where=str(path), fix=fix)
