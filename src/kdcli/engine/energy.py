"""Reads the energy counters that a platform offers; where it offers none, energy is unknown, never 0."""

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

RAPL = Path("/sys/class/powercap")


@runtime_checkable
class Meter(Protocol):
    """Something that counts energy."""

    @property
    def source(self) -> str:
        """What is counted."""
        ...

    def joules(self) -> float:
        """Return the energy since the last call, or since the meter was made."""
        ...


@dataclass
class _Counter:
    """One counter that starts again at its bound."""

    path: Path
    bound: int
    last: int

    def moved(self) -> int:
        now = int(self.path.read_text())
        grown = now - self.last if now >= self.last else now + self.bound - self.last
        self.last = now
        return grown


class Rapl:
    """The processor packages' counters of Linux; they count everything the packages do.

    Args:
        counters: one per package.
    """

    source = "RAPL, whole processor packages"

    def __init__(self, counters: list[_Counter]) -> None:
        self._counters = counters

    def joules(self) -> float:
        """Return the energy since the last call."""
        return sum(counter.moved() for counter in self._counters) * 1e-6


class Nvml:
    """The counter of an NVIDIA device.

    Args:
        library: the module ``pynvml``, initialised.
        handle: the device.
    """

    source = "NVML, whole device"

    def __init__(self, library: Any, handle: Any) -> None:
        self._library, self._handle = library, handle
        self._last = self._read()

    def joules(self) -> float:
        """Return the energy since the last call."""
        before, self._last = self._last, self._read()
        return (self._last - before) * 1e-3

    def _read(self) -> int:
        return int(self._library.nvmlDeviceGetTotalEnergyConsumption(self._handle))


def energy_meter(device: torch.device, rapl: Path = RAPL) -> Meter | None:
    """Return a meter of what computes here; None where the platform reports no energy.

    Args:
        device: NVML is read for a CUDA device, RAPL for the CPU.
        rapl: where Linux keeps its counters.
    """
    return _nvml(device) if device.type == "cuda" else _rapl(rapl) if device.type == "cpu" else None


def _rapl(root: Path) -> Rapl | None:
    counters = []
    for zone in sorted(root.glob("intel-rapl:*")):
        if zone.name.count(":") != 1:
            continue  # a part of a package, which would be counted twice
        try:
            path = zone / "energy_uj"
            counters.append(_Counter(path, int((zone / "max_energy_range_uj").read_text()), int(path.read_text())))
        except (OSError, ValueError):
            continue  # only root may read it on most systems
    return Rapl(counters) if counters else None


def _nvml(device: torch.device) -> Nvml | None:
    if importlib.util.find_spec("pynvml") is None:
        return None
    library = importlib.import_module("pynvml")
    try:
        library.nvmlInit()
        return Nvml(library, library.nvmlDeviceGetHandleByIndex(device.index or 0))
    except library.NVMLError:
        return None
