"""Digests of what lies loose in a folder: a study's settings, tables, pictures and report; a teacher's rows."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdcli import durable, stored
from kdcli.errors import IntegrityError, MachineError

NAME = "digests.json"
_SEALED = (
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


@dataclass(frozen=True)
class _Digests:
    """The shape of ``digests.json``."""

    kind: str
    files: dict[str, str]


def seal(folder: Path, names: Sequence[str] = _SEALED, kind: str = "comparison") -> None:
    """Write the digests of the files that a command writes into its folder; by default, those of a comparison."""
    digests = {name: durable.digest_file(folder / name) for name in names if (folder / name).is_file()}
    _write(folder / NAME, digests, kind)


def seal_again(path: Path) -> None:
    """Bring a file's digest up to date after it was written on purpose; those of other files stay what they are."""
    digests = path.parent / NAME
    if path.name in _SEALED and digests.is_file():
        _write(digests, {**_read(digests), path.name: durable.digest_file(path)})


def _write(path: Path, files: dict[str, str], kind: str = "comparison") -> None:
    text = json.dumps({"kind": kind, "files": files}, indent=1, sort_keys=True) + "\n"
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        durable.write_file(path, text)


def _read(path: Path) -> dict[str, str]:
    return stored.read_record(path, _Digests).files


def kind_of(folder: Path) -> str:
    """Return what a folder's digests say it is; a comparison where they cannot be read."""
    try:
        return "text" if stored.read_record(folder / NAME, _Digests).kind == "text" else "comparison"
    except (IntegrityError, MachineError):
        return "comparison"


def check_seal(folder: Path) -> int:
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


def check_files(digests: dict[Path, str]) -> None:
    """Check files against digests.

    Args:
        digests: file -> sha256.

    Raises:
        IntegrityError: names the first that is missing or differs.
    """
    for path, digest in digests.items():
        if not path.is_file() or path.is_symlink():
            raise broken(path, "is missing")
        if durable.digest_file(path) != digest:
            raise broken(path, "digest differs from the recorded one")


def broken(path: Path, what: str) -> IntegrityError:
    """Return the error that names a file."""
    return IntegrityError(
        "RUN-01", what, where=str(path), fix="restore the file, or make it again with the command that wrote it"
    )
