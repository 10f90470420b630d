"""An inspected batch is the first step of training."""

import json
import math
from dataclasses import replace

import pytest

import study
from kdcli.diagnostics.gradients import inspect_batch, write_batch
from kdcli.distill.run import distill
from kdcli.errors import UsageError
from kdcli.events import silent
from shell import kd

LOSSES = ("fkl", "2*fkl", "rkl", "0.5*ce+0.5*akl", "atkd")


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return study.Parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def found(parts):
    return inspect_batch(parts.run(), LOSSES, silent)


@pytest.mark.parametrize("label", ["0.5*ce+0.5*akl", "atkd"])
def test_it_is_the_first_step_of_training(parts, found, label):
    run = distill(parts.run(f"run-{label[0]}", label, clip=1e9, max_steps=1, save_every=1), silent).folder
    line = json.loads((run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0])
    one = found.objectives[LOSSES.index(label)]
    assert one.value == pytest.approx(line["loss"], rel=1e-6)
    assert one.norm == pytest.approx(line["gradient_norm"], rel=1e-5)
    assert one.parts == pytest.approx({name: line[name] for name in one.parts}, rel=1e-6)
    assert found.tokens == line["tokens"]


def test_cosines_are_those_of_vectors(found):
    table = found.cosines
    for row in range(len(LOSSES)):
        assert table[row][row] == 1.0
        for column in range(len(LOSSES)):
            assert table[row][column] == table[column][row]
            assert -1.0 <= table[row][column] <= 1.0
    assert table[0][1] == pytest.approx(1.0)
    assert table[0][2] < 0.999999
    assert found.objectives[1].norm == pytest.approx(2 * found.objectives[0].norm)


def test_groups_make_up_the_whole(found):
    for one in found.objectives:
        assert math.hypot(*one.groups.values()) == pytest.approx(one.norm)
        assert {"block 0", "block 1", "the rest"} <= set(one.groups)
        assert any("head" in name for name in one.groups)


def test_the_command_writes_data_and_a_picture(parts, tmp_path):
    arguments = ("--teacher", str(parts.teacher), "--student", str(parts.student), "--data", str(parts.train))
    answer = kd("inspect", "batch", *arguments, "fkl", "rkl", "--rows", "3", "--json", "-o", str(tmp_path / "out"))
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    assert found["sequences"] == 3
    written = json.loads((tmp_path / "out" / "batch.json").read_text())
    assert {"schema_version": 2, "kind": "batch", **written} == found
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"batch.json", "cosines.png", "cosines.svg"}
    shown = kd("inspect", "batch", *arguments, "fkl", "rkl", "--rows", "3")
    assert "cosine of gradients" in shown.out
    assert "+1.000" in shown.out


def test_a_gradient_of_zero_has_no_angle(found, tmp_path):
    nan = float("nan")
    write_batch(tmp_path, replace(found, objectives=found.objectives[:2], cosines=((nan, nan), (nan, 1.0))))
    assert json.loads((tmp_path / "batch.json").read_text())["cosines"] == [[None, None], [None, 1.0]]


@pytest.mark.parametrize("losses", [(), ("fkl", "fkl"), ("alk",)])
def test_mistakes_are_one_line(parts, losses):
    arguments = ("--teacher", str(parts.teacher), "--student", str(parts.student), "--data", str(parts.train))
    answer = kd("inspect", "batch", *arguments, *losses)
    assert answer.code == 2
    assert len(answer.error_lines) == 1


def test_sources_that_write_are_refused(parts):
    with pytest.raises(UsageError, match="makes its own sequences"):
        inspect_batch(parts.run("written"), ["fkl", "fkl@student"], silent)
