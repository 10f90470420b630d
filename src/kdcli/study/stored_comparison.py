"""``comparison.json``: a comparison as it was computed from a study's tables, read without computing it again.

It counts only while it names the digests of the tables and the version of the package; otherwise the tables do.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from kdcli.comparison.records import COSTS, MAKE, RESULTS, SAMPLES, Comparison
from kdcli.errors import IntegrityError, MachineError
from kdcli.storage import atomic, digests, stored
from kdcli.study.study_dir import SETTINGS, is_study
from kdcli.version import __version__

NAME = "comparison.json"


@dataclass(frozen=True)
class _Stored:
    """The shape of ``comparison.json``: what was computed, by which version, from which files."""

    version: str
    tables: Mapping[str, str]
    comparison: Comparison


def write(folder: Path, comparison: Comparison) -> None:
    """Keep a comparison beside the tables that it was computed from."""
    document = _Stored(__version__, _digests(folder), replace(comparison, folder=None))
    atomic.write_file(folder / NAME, json.dumps(asdict(document), default=str) + "\n")


def read(folder: Path, baseline: str | None = None) -> Comparison | None:
    """Return the comparison that a folder keeps; None where there is none that fits its tables and this version.

    Args:
        folder: what ``kd compare`` wrote.
        baseline: label that differences are to be taken to; by default the one it was made with.

    Raises:
        IntegrityError: a table is not what it was when the comparison was finished.
    """
    check_tables(folder)
    if not (folder / NAME).is_file():
        return None
    try:
        digests.check_named(folder, (NAME,), MAKE)
        kept = stored.read_record(folder / NAME, _Stored)
    except (IntegrityError, MachineError):
        return None
    found = kept.comparison
    fits = kept.version == __version__ and kept.tables == _digests(folder) and baseline in (None, found.baseline)
    return replace(found, folder=folder) if fits else None


def check_tables(folder: Path) -> None:
    """Check the tables in a folder against its digests; tables alone may have been copied elsewhere.

    Raises:
        IntegrityError: a table is not what it was when the comparison was finished.
    """
    names = tuple(_present(folder))
    sealed = is_study(folder) or (folder / digests.NAME).is_file()
    digests.check_named(folder, names, MAKE, needed=sealed and bool(names))


def _digests(folder: Path) -> dict[str, str]:
    return {name: atomic.digest_file(folder / name) for name in _present(folder, SETTINGS)}


def _present(folder: Path, *others: str) -> list[str]:
    return [name for name in (RESULTS, SAMPLES, COSTS, *others) if (folder / name).is_file()]
