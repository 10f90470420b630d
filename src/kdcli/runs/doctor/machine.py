"""What this machine has: versions, device, memory, disk."""

import importlib.metadata
import os
import shutil
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from kdcli.config import DoctorConfig
from kdcli.data.tables import size_text
from kdcli.engine.devices import Device, prepare
from kdcli.runs.doctor.check import Examination
from kdcli.runs.environment import environment
from kdcli.text import typed

_LITTLE = 2**30


def examine_machine(config: DoctorConfig, found: Examination) -> Device | None:
    """Look at versions, device, threads, memory and disk; return the device."""
    versions = environment()
    libraries = ", ".join(f"{name} {versions['libraries'][name]}" for name in ("torch", "transformers", "accelerate"))
    found.add("versions", "ok", f"kd {versions['kd']}, python {versions['python']}, {libraries}")
    examine_versions(found)
    device = found.attempt("device", lambda: prepare(config.hardware))
    if device is not None:
        found.add("device", "ok", device.description)
        _threads(found)
        _dtype(device, found)
    _memory(device, found)
    _disk(Path(config.output or "."), found)
    return device


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


def _threads(found: Examination) -> None:
    used, here = torch.get_num_threads(), len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    if here and used > here:
        found.add("threads", "warn", f"{used} threads on {here} cores", f"give --threads {here}")
    else:
        found.add("threads", "ok", f"{used} of {here or 'unknown'} cores; part of a run's identity once set")


def _dtype(device: Device, found: Examination) -> None:
    """Multiply in the dtype of the computation."""
    one = torch.ones((8, 8), dtype=device.compute, device=device.device)
    fine = bool(((one @ one).float() == 8.0).all())
    name = str(device.compute).removeprefix("torch.")
    fix = "" if fine else "give --dtype fp32"
    found.add("dtype", "ok" if fine else "fail", f"{name} products are {'right' if fine else 'wrong'}", fix)


def _memory(device: Device | None, found: Examination) -> None:
    if device is not None and device.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device.device)
    else:
        free, total = (os.sysconf(name) * os.sysconf("SC_PAGE_SIZE") for name in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES"))
    state = "ok" if free > _LITTLE else "warn"
    found.add("memory", state, f"{size_text(free)} free of {size_text(total)}", "" if state == "ok" else "free some")


def _disk(folder: Path, found: Examination) -> None:
    here = next(path for path in (folder, *folder.resolve().parents) if path.is_dir())
    free = shutil.disk_usage(here).free
    if not os.access(here, os.W_OK):
        found.add("disk", "fail", f"{here} cannot be written", "choose another -o")
    else:
        state = "ok" if free > _LITTLE else "warn"
        found.add("disk", state, f"{size_text(free)} free for {folder}", "" if state == "ok" else "free some")
