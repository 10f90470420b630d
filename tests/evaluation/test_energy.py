"""Energy counters as the platforms write them, in folders and libraries made up here."""

import sys
import types
from pathlib import Path

import pytest
import torch

from kdcli.evaluation.edge import energy_meter

CPU, GPU = torch.device("cpu"), torch.device("cuda", 1)


def zone(root: Path, name: str, joules: float, bound: float = 1000.0) -> Path:
    folder = root / name
    folder.mkdir()
    (folder / "max_energy_range_uj").write_text(f"{int(bound * 1e6)}\n")
    (folder / "energy_uj").write_text(f"{int(joules * 1e6)}\n")
    return folder / "energy_uj"


def test_all_packages_count_and_their_parts_do_not(tmp_path):
    first, second = zone(tmp_path, "intel-rapl:0", 10.0), zone(tmp_path, "intel-rapl:1", 500.0)
    part = zone(tmp_path, "intel-rapl:0:0", 1.0)
    meter = energy_meter(CPU, tmp_path)
    first.write_text("12500000\n")
    second.write_text("501000000\n")
    part.write_text("999000000\n")
    assert meter.joules() == pytest.approx(3.5)
    assert meter.joules() == 0.0
    assert meter.source == "RAPL, whole processor packages"


def test_a_counter_that_starts_again_has_not_lost_anything(tmp_path):
    counter = zone(tmp_path, "intel-rapl:0", 990.0)
    meter = energy_meter(CPU, tmp_path)
    counter.write_text("5000000\n")
    assert meter.joules() == pytest.approx(15.0)


@pytest.mark.parametrize("content", ["", "unknown\n", None])
def test_counters_that_cannot_be_read_are_no_counters(tmp_path, content):
    counter = zone(tmp_path, "intel-rapl:0", 1.0)
    counter.unlink() if content is None else counter.write_text(content)
    assert energy_meter(CPU, tmp_path) is None


def test_a_platform_without_counters_has_no_meter(tmp_path):
    assert energy_meter(CPU, tmp_path / "nowhere") is None
    assert energy_meter(torch.device("meta"), tmp_path) is None


def nvml(monkeypatch, readings, fails=False):
    """A library that reads these millijoules, one after the other."""
    made, left = types.ModuleType("pynvml"), iter(readings)
    made.NVMLError = type("NVMLError", (Exception,), {})
    made.handles = []

    def read(handle):
        if fails:
            raise made.NVMLError("not supported")
        return next(left)

    made.nvmlInit = lambda: None
    made.nvmlDeviceGetHandleByIndex = lambda index: made.handles.append(index) or index
    made.nvmlDeviceGetTotalEnergyConsumption = read
    made.__spec__ = types.SimpleNamespace(name="pynvml")
    monkeypatch.setitem(sys.modules, "pynvml", made)
    return made


def test_nvml_counts_millijoules_of_the_device_in_use(monkeypatch):
    library = nvml(monkeypatch, [1000, 3500, 3600])
    meter = energy_meter(GPU)
    assert library.handles == [1]
    assert meter.joules() == pytest.approx(2.5)
    assert meter.joules() == pytest.approx(0.1)
    assert meter.source == "NVML, whole device"


def test_a_device_that_counts_no_energy_has_no_meter(monkeypatch):
    nvml(monkeypatch, [], fails=True)
    assert energy_meter(GPU) is None


def test_without_the_library_there_is_no_meter(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert energy_meter(GPU) is None
