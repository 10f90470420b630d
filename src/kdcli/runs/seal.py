"""Digests of what lies loose in a study's folder: the tables, the pictures, the report."""

import json
from pathlib import Path

from kdcli import durable
from kdcli.errors import IntegrityError

NAME = "digests.json"
_SEALED = (
    "costs.csv",
    "curves.png",
    "curves.svg",
    "report.html",
    "results.parquet",
    "samples.parquet",
    "table.csv",
    "table.html",
    "table.json",
    "table.md",
    "table.tex",
)


def seal(folder: Path) -> None:
    """Write the digests of the files that a comparison writes into its folder."""
    files = {name: durable.digest_file(folder / name) for name in _SEALED if (folder / name).is_file()}
    text = json.dumps({"kind": "comparison", "files": files}, indent=1, sort_keys=True) + "\n"
    path = folder / NAME
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        durable.write_file(path, text)


def seal_again(path: Path) -> None:
    """Bring the digests of a sealed folder up to date after a file in it was written on purpose."""
    if path.name in _SEALED and (path.parent / NAME).is_file():
        seal(path.parent)


def check_seal(folder: Path) -> int:
    """Check the files that a folder's digests name.

    Returns:
        how many they are.

    Raises:
        IntegrityError: names the first that is not what it was.
    """
    path = folder / NAME
    try:
        files = json.loads(path.read_bytes())["files"]
        named = {folder / str(name): str(digest) for name, digest in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise broken(path, "is not a list of digests") from error
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
