"""Reference lines of runs that are finished, and lines of models that were trained elsewhere."""

import shutil

import pytest

import tiny
from kdcli.config.schema import GenerationConfig
from kdcli.distill.run import distill
from kdcli.errors import InputError, UsageError
from kdcli.evaluation.evaluate import evaluate_run
from kdcli.events import silent
from kdcli.study import references
from kdcli.study.compare import compare
from kdcli.study.finished import compare_runs, load
from study import Parts


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return Parts(tmp_path_factory.mktemp("finished"))


@pytest.fixture(scope="module")
def runs(parts):
    return [distill(parts.run(loss, loss, max_steps=2), silent).folder for loss in ("fkl", "ce")]


@pytest.fixture(scope="module")
def study(parts):
    return compare(parts.study("fkl", "rkl", max_steps=2), silent)


def values(row):
    return {name: one.mean for name, one in row.scores.items()}


def test_runs_of_a_study_bring_its_lines_and_nothing_is_measured(study, monkeypatch):
    monkeypatch.setattr(references, "evaluate_subject", lambda *parts: pytest.fail("measured again"))
    cells = sorted((study.folder / "cells").iterdir())
    found = compare_runs(cells, None, silent)
    assert [values(row) for row in found.references] == [values(row) for row in study.references]
    assert {row.label: row.before["nll"].mean for row in found.rows} == {
        row.label: row.before["nll"].mean for row in study.rows
    }
    comparison, _, lines = load(cells)
    assert (
        [row.label for row in comparison.references] == [one.label for one in lines] == ["student, before", "teacher"]
    )


def test_runs_made_alone_have_their_lines_measured(parts, runs, study, tmp_path):
    found = compare_runs(runs, None, silent, output=tmp_path / "out")
    assert [values(row) for row in found.references] == [values(row) for row in study.references]
    assert "student, before" in (tmp_path / "out" / "table.md").read_text()
    comparison, _, lines = load(runs)
    assert lines == []
    assert any(
        note.startswith("no line for student, before or teacher: no study keeps it") for note in comparison.notes
    )


def test_a_model_of_elsewhere_stands_beside_the_runs_with_its_tests(parts, runs, tmp_path):
    other = tiny.folder(tmp_path / "other", seed=5, hidden_size=8)
    found = compare_runs([runs[0], other], None, silent)
    line = found.references[-1]
    assert (line.role, line.label) == ("model", "other")
    config = parts.evaluation(other)
    alone = evaluate_run(config, silent)
    assert values(line) == {name: one.mean for name, one in alone.estimates.items()}
    assert line.differences["nll"].mean == pytest.approx(line.scores["nll"].mean - found.rows[0].scores["nll"].mean)
    assert line.before["nll"].p_value is not None
    assert [row.label for row in found.rows] == ["fkl"]


def test_the_teacher_given_as_a_model_is_told_apart_and_not_compared_with_itself(parts, runs):
    found = compare_runs([runs[0], parts.teacher], None, silent)
    assert [row.label for row in found.references] == ["student, before", "teacher", f"model {parts.teacher}"]
    assert values(found.references[2]) == values(found.references[1])


def test_a_model_that_changed_since_has_no_line_and_that_is_said(parts, tmp_path):
    other = Parts(tmp_path)
    runs = [distill(other.run(loss, loss, max_steps=1), silent).folder for loss in ("fkl", "ce")]
    shutil.rmtree(other.student)
    found = compare_runs(runs, None, silent)
    assert found.references == ()
    assert any("no line for student, before or teacher: the student before training" in note for note in found.notes)
    tiny.folder(other.root / "student", seed=9, hidden_size=8)
    found = compare_runs(runs, None, silent)
    assert [row.label for row in found.references] == ["teacher"]
    assert "no line for student, before: its folder holds another model than then" in found.notes


def test_a_model_on_other_rows_is_refused(parts, runs, tmp_path):
    other = tiny.folder(tmp_path / "other", seed=5, hidden_size=8)
    rows = tiny.rows(tmp_path / "rows.jsonl", 9)
    with pytest.raises(InputError, match="CMP-06"):
        compare_runs([runs[0], other], None, silent, rows=str(rows))


@pytest.fixture(scope="module")
def run_of_texts(parts):
    config = parts.run("texts", "fkl", max_steps=2)
    texts = GenerationConfig(max_new_tokens=2, seeds=(1,))
    measured = config.evaluation.model_copy(update={"metrics": ("rougeL",), "generation": texts})
    return distill(config.model_copy(update={"evaluation": measured}), silent).folder


@pytest.mark.parametrize("kind", ["tokens", "texts"])
@pytest.mark.parametrize("changed", [False, True])
def test_rows_are_told_apart_by_what_they_say_and_not_by_their_place(
    parts, runs, run_of_texts, tmp_path, kind, changed
):
    other = tiny.folder(tmp_path / "other", seed=5, hidden_size=8)
    text = parts.test.read_text(encoding="utf-8")
    rows = tmp_path / "moved.jsonl"
    rows.write_text(text.replace("bb", "xy") if changed else text, encoding="utf-8")
    pair = [runs[0] if kind == "tokens" else run_of_texts, other]
    if not changed:
        assert compare_runs(pair, None, silent, rows=str(rows)).references[-1].label == "other"
        return
    with pytest.raises(InputError, match="CMP-06"):
        compare_runs(pair, None, silent, rows=str(rows))


def test_models_alone_are_no_comparison(parts):
    with pytest.raises((InputError, UsageError)):
        compare_runs([parts.student, parts.teacher], None, silent)
