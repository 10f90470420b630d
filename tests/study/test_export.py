"""``kd compare STUDY --to``: no flag is dropped in silence, the study stays as it is, an unfinished one is marked."""

import shutil
from pathlib import Path

import pytest

from shell import kd
from study import tree

EARLIER = Path(__file__).parents[1] / "earlier" / "study"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    shutil.copytree(EARLIER, folder / "study")
    half = Path(shutil.copytree(EARLIER, folder / "half"))
    for name in ("results.parquet", "samples.parquet"):
        (half / name).unlink()
    shutil.rmtree(next(half.glob("cells/akl-*")))
    none = Path(shutil.copytree(half, folder / "none"))
    shutil.rmtree(none / "cells")
    return folder


def made(home, *words):
    before = tree(home / "study")
    answer = kd("compare", "study", *words, folder=home)
    assert tree(home / "study") == before
    return answer


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "--to x.md --metric nll",
            "[CLI-09]: --metric: has no effect on a study that exists, which --to shows as it is",
        ),
        ("--to x.md --by rougeL", "[CLI-09]: --by: has no effect on a study that exists, which --to shows as it is"),
        (
            "--to x.md --columns rouge1",
            '[CLI-21]: --columns: "rouge1" is no score of this comparison. Fix: did you mean',
        ),
        (
            "--to x.md --layout tall",
            '[CLI-21]: --layout: "tall" is no layout. Fix: choose one of wide, two-rows, value-',
        ),
        ("--to x.md --digits 0", '[CLI-07]: --digits: must be a whole number from 1 to 9, got "0"'),
        ("--to x.md --titles rougeL", '[CLI-21]: --titles: "rougeL" has no title. Fix: write rougeL=Rouge-L'),
        (
            "--to x.md --baseline rkl",
            '[CLI-18]: --baseline: "rkl" is no line of this comparison. Fix: choose one of fkl',
        ),
        ("--to x.csv --layout wide", "[CLI-09]: --layout: has no effect on this form"),
        ("--layout wide", "[CLI-09]: --layout: has no effect without --to"),
        ("--titles a=b", "[CLI-09]: --titles: has no effect without --to"),
        (
            "--status --columns rougeL",
            "[CLI-09]: --columns: has no effect on a study that exists, which --status shows",
        ),
    ],
)
def test_a_flag_that_cannot_be_followed_is_refused(home, words, said):
    answer = made(home, *words.split())
    assert answer.code == 2
    assert f"kd: error{said}" in answer.error_lines[-1]
    assert not [path for path in home.iterdir() if path.suffix]


def test_what_is_asked_for_is_in_the_file(home, tmp_path):
    target = tmp_path / "table.md"
    words = f"--to {target} --columns kl_to_teacher --layout two-rows --baseline akl --digits 1 --titles akl=Adaptive"
    assert made(home, *words.split(), "--caption", "Mine.").code == 0
    lines = target.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "| objective | KL to teacher (nats) ↓ |"
    assert [line.split(" | ")[0] for line in lines[2:7]] == [
        "| student, before", "| teacher", "| fkl", "| Δ to Adaptive", "| Adaptive",
    ]  # fmt: skip
    assert lines[-1] == "Mine."


def test_an_unfinished_study_gives_a_table_that_says_so(home, tmp_path):
    for form in ("md", "tex"):
        target = tmp_path / f"part.{form}"
        assert kd("compare", "half", "--to", str(target), folder=home).code == 0
        text = target.read_text(encoding="utf-8")
        assert "partial: 1 of 2 runs are finished" in text
        assert "fkl" in text
        assert "akl" not in text
    answer = kd("compare", "none", "--to", "x.md", folder=home)
    assert (answer.code, "none of its runs is finished" in answer.error_lines[-1]) == (3, True)
