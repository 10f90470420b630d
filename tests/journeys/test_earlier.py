"""Runs and studies that an earlier version wrote are verified, measured, tabulated and gone on with."""

import csv
import json
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from shell import kd
from study import tree

EARLIER = Path(__file__).parents[1] / "earlier"
CELL = "study/cells/fkl-s0-*"


@pytest.fixture
def earlier(tmp_path, monkeypatch):
    folder = Path(shutil.copytree(EARLIER, tmp_path / "earlier"))
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    sys.modules.pop("squared", None)


def command(folder: Path) -> list[str]:
    """The command line that a run folder remembers."""
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["environment"]["argv"][1:]


def same_machine(made: dict[str, str]) -> bool:
    """Whether float32 sums have the bits here that they had where the files were made."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    return made["torch"] == torch.__version__ and any(line.endswith(made["cpu"]) for line in lines)


def test_every_digest_is_right(earlier):
    for folder in (*earlier.glob("study/cells/*"), earlier / "half", earlier / "study"):
        answer = kd("verify", str(folder))
        assert (answer.code, answer.err) == (0, ""), folder


def test_a_stopped_run_goes_on_and_ends_with_the_weights_of_an_unbroken_one(earlier):
    before = tree(earlier / "half" / "made")
    answer = kd(*command(earlier / "half"), folder=earlier)
    assert answer.code == 0, answer.err
    assert tree(earlier / "half" / "made").items() >= before.items()
    steps = [json.loads(line)["step"] for line in (earlier / "half" / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert steps == list(range(1, 9))
    assert (earlier / "half" / "metrics.jsonl").read_bytes().startswith((EARLIER / "half/metrics.jsonl").read_bytes())
    trained, wanted = load_file(earlier / "half/model/model.safetensors"), load_file(earlier / "trained.safetensors")
    exact = same_machine(json.loads((earlier / "made.json").read_text(encoding="utf-8")))
    torch.testing.assert_close(trained, wanted, rtol=0, atol=0 if exact else 1e-4)


def test_a_stopped_run_does_not_go_on_as_another_experiment(earlier):
    before = tree(earlier / "half")
    answer = kd(*command(earlier / "half"), "--set", "train.clip=0.5", folder=earlier)
    assert answer.code == 8
    assert tree(earlier / "half").items() >= before.items()


def same_library():
    """Whether transformers is the one that the study was made with: the bits of a teacher cache depend on it."""
    made = json.loads((next(EARLIER.glob(CELL)) / "manifest.json").read_text(encoding="utf-8"))
    return made["environment"]["libraries"]["transformers"] == version("transformers")


def scores(cell: Path) -> dict[str, list[float]]:
    records = json.loads((cell / "eval/test/results.json").read_text(encoding="utf-8"))["scores"]
    return {record["name"]: [record["value"], record["low"], record["high"]] for record in records}


def test_a_trained_run_is_measured_again_with_the_same_scores(earlier):
    cell = next(earlier.glob(CELL))
    wanted = scores(cell)
    shutil.rmtree(cell / "eval")
    line = "--teacher teacher --data test.jsonl --metric rougeL,kl_to_teacher --sampling-seeds 1 --max-new-tokens 4"
    answer = kd("eval", str(cell.relative_to(earlier)), *line.split(), folder=earlier)
    assert answer.code == 0, answer.err
    measured = scores(cell)
    assert measured.keys() == wanted.keys()
    for name, numbers in wanted.items():
        assert measured[name] == pytest.approx(numbers, rel=1e-3), name


def value(cell: str) -> float | str:
    """A cell's number; its text where it holds none."""
    try:
        return float(cell)
    except ValueError:
        return cell


def table(folder: Path) -> list[list[str]]:
    with (folder / "table.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_a_study_is_tabulated_and_nothing_is_trained_again(earlier):
    study = earlier / "study"

    def kept():  # what was measured is measured again where another library may give other bits
        found = {name: tree(study / name) for name in ("cells", "teacher-cache", "reference")}
        trained = {
            name: one for name, one in found["cells"].items() if name.endswith((".safetensors", "metrics.jsonl"))
        }
        return found if same_library() else {"cells": trained, "teacher-cache": found["teacher-cache"]}

    before = kept()
    assert before["cells"]
    wanted = table(study)
    (study / "table.csv").unlink()
    answer = kd("compare", "-o", "study", folder=earlier)
    assert answer.code == 0, answer.err
    assert "2 runs: 2 done" in answer.err
    assert kept() == before
    written = table(study)
    for line, other in zip(written, wanted, strict=True):
        for cell, before in zip(map(value, line), map(value, other), strict=True):
            assert cell == (pytest.approx(before, rel=1e-6, abs=1e-9) if isinstance(before, float) else before)


def test_a_study_goes_on_with_one_cell_more(earlier):
    before = tree(earlier / "study/cells")
    answer = kd(*command(next(earlier.glob(CELL))), "--seeds", "0,1", folder=earlier)
    after = tree(earlier / "study/cells")
    assert after.items() >= before.items()
    if not same_library():
        assert answer.code == 8
        assert "CACHE-03" in answer.err
        return
    assert answer.code == 0, answer.err
    assert len(list(earlier.glob("study/cells/*"))) == 4
