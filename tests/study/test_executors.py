"""Which executor is chosen, what it refuses, and what a cell's own process is."""

import importlib.util
import os
import shutil
import subprocess
import sys

import pytest

from kdcli.config.schema import ExecutionConfig, HardwareConfig
from kdcli.errors import KDError, MachineError, UsageError
from kdcli.study.executors import select
from kdcli.study.executors.child import arguments, run_cell
from kdcli.study.executors.select import check_executor, executor_name, with_threads


def config(threads=None, gpus=1, **execution):
    return ExecutionConfig(**execution), HardwareConfig(threads=threads, gpus=gpus)


@pytest.mark.parametrize(
    ("settings", "name"),
    [({}, "inline"), ({"jobs": 1}, "inline"), ({"jobs": 2}, "local"), ({"gpus": 2}, "local"),
     ({"executor": "local"}, "local"), ({"executor": "ray", "jobs": 2}, "ray")],
)  # fmt: skip
def test_the_executor_follows_from_the_settings(settings, name):
    assert executor_name(*config(**settings)) == name


@pytest.mark.parametrize(
    ("settings", "kind", "what"),
    [
        ({"executor": "inline", "jobs": 2}, UsageError, "one run at a time"),
        ({"slurm": {"time": "1"}}, UsageError, "--slurm: has no effect"),
        ({"ray_address": "auto"}, UsageError, "--ray-address: has no effect"),
        ({"executor": "slurm", "slurm": {"partitoin": "x"}}, UsageError, "partitoin is not known"),
        ({"executor": "slurm", "slurm": {"time": "2h"}}, UsageError, "time must be a whole number"),
        ({"executor": "slurm", "slurm": {"cluster": "here"}}, UsageError, "slurm or local"),
        ({"executor": "slurm"}, MachineError, "no sbatch on this machine"),
    ],
)
def test_settings_that_cannot_work_are_refused_in_one_line(settings, kind, what, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(kind, match=what) as caught:
        check_executor(*config(**settings))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "library"), [("slurm", "submitit"), ("ray", "ray")])
def test_a_missing_extra_names_its_install_line(name, library, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: None if wanted == library else found(wanted))
    with pytest.raises(KDError, match=f"{library} is not installed") as caught:
        check_executor(*config(executor=name))
    assert caught.value.fix == f"pip install 'kdcli[{name}]'"
    assert caught.value.exit_code == 4


def test_threads_are_settled_alike_for_every_executor_elsewhere(monkeypatch):
    monkeypatch.setattr(select, "cores", lambda: 8)
    assert with_threads(*config()) == (HardwareConfig(), [])
    assert with_threads(*config(threads=3, jobs=4)) == (HardwareConfig(threads=3), [])
    settled, (note,) = with_threads(*config(jobs=4))
    assert settled.threads == 2
    assert "give --threads 2" in note
    assert with_threads(*config(jobs=16))[0].threads == 1
    assert with_threads(*config(executor="slurm", slurm={"cpus": "5"}))[0].threads == 5
    assert with_threads(*config(executor="ray"))[0].threads == 1


def test_a_cells_process_drops_settings_from_the_environment(tmp_path):
    environ = {**os.environ, "KD_LR": "1", "KD_XYZ": "1"}
    command = arguments(tmp_path / "absent.yaml", tmp_path / "cell")
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "absent.yaml: not found" in done.stderr


def test_a_cells_process_does_not_start_without_its_parent():
    module = "kdcli.study.executors.child"
    done = subprocess.run([sys.executable, "-m", module, "1", "--version"], capture_output=True, check=False)
    assert done.returncode == 143


def test_running_a_cell_leaves_what_it_said(tmp_path):
    assert run_cell("absent.yaml", "cell", "log", str(tmp_path)) == 3
    assert (tmp_path / "log").read_text().startswith("kd: error[CFG-01]: absent.yaml: not found")
