"""The toy experiments show what is known of these divergences."""

import csv
import json

import pytest

from kdcli.demo import toy
from kdcli.demo import toy as fits
from kdcli.events import silent
from shell import kd


@pytest.fixture(scope="module", autouse=True)
def few_starts():
    """Two starts are enough to find both ends."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fits, "STARTS", fits.STARTS[1:3])
        yield


@pytest.fixture(scope="module")
def found(few_starts, tmp_path_factory):
    return toy.toy(("fkl", "rkl", "akl"), tmp_path_factory.mktemp("toy"), silent)


def by_name(found):
    return {one.objective: one for one in found.objectives}


def test_forward_kl_fits_the_head_first_and_reverse_kl_the_tail(found):
    one = by_name(found)
    assert one["fkl"].head_half < one["akl"].head_half < one["rkl"].head_half
    assert one["rkl"].tail[100] < one["akl"].tail[100] < one["fkl"].tail[100]


def test_the_gaps_start_at_the_uniform_distribution_and_close(found):
    p = toy.teacher()
    apart = (p - 1 / toy.ENTRIES).abs().sum().item()
    for one in found.objectives:
        assert one.head[0] + one.tail[0] == pytest.approx(apart)
        assert one.head[-1] + one.tail[-1] < 0.03 * apart
        assert len(one.head) == len(one.tail) == toy.EPOCHS


def test_the_sentences_are_the_numbers(found):
    one = by_name(found)
    assert found.findings[0] == (
        f"epochs until the head gap is halved: fkl {one['fkl'].head_half}, akl {one['akl'].head_half}, "
        f"rkl {one['rkl'].head_half}"
    )
    assert "rkl 60%" in found.findings[-1]
    assert "fkl 100%" in found.findings[-1]


def test_what_is_not_reached_is_said():
    slow = toy.Toy("x", (1.0, 0.9), (1.0, 0.4), None, 1, (1.0,), 0.5, 0.0)
    said = toy._findings([slow])
    assert said[0] == f"the head gap is not halved within {toy.EPOCHS} epochs by x"
    assert said[1] == "epochs until the tail gap is halved: x 1"


def test_data_and_figures_are_written(found):
    names = {path.name for path in found.folder.iterdir()}
    assert names == {"toy.json", "gaps.csv", "modes.csv", "gaps.png", "gaps.svg", "modes.png", "modes.svg"}
    rows = list(csv.DictReader((found.folder / "gaps.csv").read_text(encoding="utf-8").splitlines()))
    assert len(rows) == 3 * toy.EPOCHS
    assert float(rows[0]["head_gap"]) == found.objectives[0].head[0]
    document = json.loads((found.folder / "toy.json").read_text(encoding="utf-8"))
    assert document["objectives"][2]["q"] == list(found.objectives[2].q)


def test_the_command_takes_any_objective_and_repeats_its_bytes(tmp_path):
    for name in ("one", "two"):
        answer = kd("toy", "jsd:beta=0.9", "-o", str(tmp_path / name))
        assert answer.code == 0, answer.err
        assert "jsd:beta=0.9" in answer.out
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


@pytest.mark.parametrize("losses", [("fkl", "fkl"), ("alk",), ("jsd:beta=7",)])
def test_mistakes_are_one_line(losses, tmp_path):
    answer = kd("toy", *losses, "-o", str(tmp_path / "toy"))
    assert answer.code == 2
    assert len(answer.error_lines) == 1
