"""Students as an axis of a comparison: every student is compared with itself before training."""

import json

import pytest

import sliced
import tiny
from kdcli.study.results import read_comparison
from shell import kd

CUT, RANDOM = "cut:layers=1,ffn=16", "random:layers=1,width=8,heads=1"
LINE = (
    "compare fkl rkl --vary student={} --teacher teacher --data train.jsonl --eval-data test.jsonl --max-steps 4 "
    "--lr 0.01 --metric perplexity --seeds 0,1 -o study"
)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    root = tmp_path_factory.mktemp("vary")
    sliced.folder(root / "teacher", "llama", seed=1)
    tiny.rows(root / "train.jsonl", 12)
    tiny.rows(root / "test.jsonl", 6)
    return root


@pytest.fixture(scope="module")
def study(home):
    answer = kd(*LINE.format(f"{CUT},{RANDOM}").split(), folder=home)
    assert answer.code == 0, answer.err
    return home / "study"


def test_the_table_has_a_line_for_every_objective_and_student_with_its_parameters(study):
    found = read_comparison(study)
    assert [row.label for row in found.rows] == [
        f"{loss} [student={student}]" for loss in ("fkl", "rkl") for student in (CUT, RANDOM)
    ]
    sizes = {row.label.partition("=")[2]: row.parameters for row in found.rows}
    assert len(set(sizes.values())) == 2
    assert set(found.pareto["nll"]) == {"parameters", "flops"}
    assert found.setup is not None
    assert found.setup.student == f"{CUT}, {RANDOM}"


def test_every_line_is_compared_with_its_own_student_before_training(study):
    found = read_comparison(study)
    starts = {row.label: row for row in found.references if row.role == "before"}
    assert set(starts) == {f"student, before [{CUT}]", f"student, before [{RANDOM}]"}
    assert len({row.scores["nll"].mean for row in starts.values()}) == 2
    for row in found.rows:
        start = starts[f"student, before [{row.label.partition('=')[2][:-1]}]"]
        assert row.before["nll"].mean == pytest.approx(row.scores["nll"].mean - start.scores["nll"].mean, rel=1e-9)
    listed = json.loads((study / "study.json").read_text())["references"]
    assert [one["role"] for one in listed] == ["before", "before", "before", "teacher"]
    assert len({one["folder"] for one in listed}) == 4


def test_a_second_start_and_one_more_student_train_only_what_is_missing(home, study):
    again = kd("compare", "-o", "study", folder=home)
    assert again.code == 0, again.err
    assert "8 runs: 8 done" in again.err
    assert "measuring" not in again.err
    before = read_comparison(study)
    more = kd(*LINE.format(f"{CUT},{RANDOM},cut:layers=2").split(), folder=home)
    assert more.code == 0, more.err
    assert "12 runs: 8 done" in more.err
    after = {row.label: row for row in read_comparison(study).rows}
    assert len(after) == 6
    for row in before.rows:
        assert after[row.label].scores["nll"].mean == row.scores["nll"].mean
    assert kd("verify", "study", folder=home).code == 0


def test_a_plan_names_every_student(home):
    answer = kd(*LINE.format(f"{CUT},{RANDOM}").split(), "--json", "--dry-run", folder=home)
    assert answer.code == 0, answer.err
    assert CUT in answer.out
    assert RANDOM in answer.out


@pytest.mark.parametrize(
    "line, code, said",
    [
        (LINE.format(CUT), "CLI-20", "student needs two values or more"),
        (LINE.format(f"{CUT},{CUT}"), "CLI-08", "is given twice"),
        (LINE.format(f"{CUT},{RANDOM}") + f" --student {CUT}", "CLI-09", "leave --student out"),
        (LINE.format(f"{CUT},{RANDOM}") + " --tune student=a,b", "CLI-09", "give it to --vary"),
        (LINE.format(f"{CUT},nowhere"), "MOD-01", "nowhere"),
        (LINE.format(f"{CUT},cut:layers=9"), "CUT", "9"),
    ],
)
def test_students_that_cannot_be_compared_are_one_line(home, line, code, said):
    answer = kd(*line.split(), folder=home)
    assert answer.code in (2, 3)
    (error,) = answer.error_lines
    assert code in error
    assert said in error
