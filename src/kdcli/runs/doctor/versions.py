"""Which versions of the libraries were tested, and which are here."""

import importlib.metadata
from collections.abc import Callable
from importlib.resources import files

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from kdcli.runs.doctor.check import Examination
from kdcli.text import typed


def locked_versions() -> dict[str, str]:
    """Return the locked version of each distribution, for this Python and platform.

    >>> locked_versions()["torch"]
    '2.13.0'
    """
    lines = files("kdcli").joinpath("constraints.txt").read_text(encoding="utf-8").splitlines()
    locked = (Requirement(line) for line in lines if line and not line.startswith("#"))
    return {
        canonicalize_name(line.name): next(iter(line.specifier)).version
        for line in locked
        if line.marker is None or line.marker.evaluate()
    }


def examine_versions(found: Examination, version: Callable[[str], str] = importlib.metadata.version) -> None:
    """Compare the libraries that are installed with the ranges that ``kd`` asks for and with the versions tested.

    Args:
        found: where the lines go: ``fail`` for a version outside its range, ``warn`` for one that was not tested.
        version: the installed version of a distribution; raises PackageNotFoundError.
    """
    tested = locked_versions()
    outside, other, same = [], [], 0
    for line in importlib.metadata.requires("kdcli") or ():
        asked = Requirement(line)
        name = canonicalize_name(asked.name)
        try:
            here = Version(version(name))
        except importlib.metadata.PackageNotFoundError:
            continue
        if not asked.specifier.contains(here, prereleases=True):
            outside.append(f"{name} {here} ({asked.specifier})")
        elif tested.get(name) not in (here.public, str(here)):
            other.append(f"{name} {here} (tested {tested.get(name)})")
        else:
            same += 1
    fix = f"pip install -c {typed(files('kdcli').joinpath('constraints.txt'))} kdcli"
    if outside:
        found.add("tested versions", "fail", f"outside the ranges of kd: {', '.join(outside)}", fix)
    elif other:
        found.add("tested versions", "warn", f"{same} libraries as tested, not {', '.join(other)}", fix)
    else:
        found.add("tested versions", "ok", f"{same} libraries, each in the version that was tested")
