"""The student before training and the teacher: measured once on the same rows, in every form of a table."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from evaluated import evaluation, groups
from kdcli import statistics
from kdcli.cli.study import read
from kdcli.comparison.against_start import against_start
from kdcli.comparison.aggregate import Group
from kdcli.comparison.records import ComparisonRow, ReferenceRow
from kdcli.comparison.tables_store import ComparisonMeta
from kdcli.config.schema import ServerConfig
from kdcli.distill.records import Reference
from kdcli.errors import MachineError
from kdcli.evaluation.evaluate import evaluate_run
from kdcli.evaluation.records import ScoreInfo
from kdcli.evaluation.results import read_results, read_scores
from kdcli.events import silent
from kdcli.loading.info import Ensemble
from kdcli.loading.session import Session
from kdcli.report.page import report
from kdcli.statistics import Estimate
from kdcli.storage.digests import write_digests
from kdcli.study import references
from kdcli.study.cells import make_cells
from kdcli.study.compare import compare, plan_compare
from kdcli.study.finished import load
from kdcli.study.references import measure_references, plan_references
from kdcli.study.results import conclude, read_comparison
from kdcli.study.study_dir import read_study
from kdcli.study.verify import verify
from study import Heard, Parts, tree


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    parts = Parts(tmp_path_factory.mktemp("lines"))
    return parts, compare(parts.study("fkl", "ce", seeds=(0, 1)), silent)


def test_every_form_of_the_table_has_both_lines(made):
    _, found = made
    for name in ("table.md", "table.tex", "table.html", "table.csv", "table.json", "report.html"):
        text = (found.folder / name).read_text(encoding="utf-8")
        assert "student, before" in text, name
        assert "teacher" in text, name
    roles = pq.read_table(found.folder / "results.parquet")["role"].to_pylist()
    assert set(roles) == {"before", "teacher", "contender"}
    document = json.loads((found.folder / "table.json").read_text())
    assert [one["label"] for one in document["references"]] == ["student, before", "teacher"]


def test_the_lines_are_what_kd_eval_says_of_the_same_models(made, tmp_path):
    parts, found = made
    before, teacher = found.references
    alone = evaluate_run(parts.evaluation(parts.student, output=str(tmp_path / "before")), silent)
    assert {name: one.mean for name, one in before.scores.items()} == {
        name: one.mean for name, one in alone.estimates.items()
    }
    alone = evaluate_run(parts.evaluation(parts.teacher, teacher=str(parts.student)), silent)
    for name in ("rougeL", "perplexity", "nll"):
        assert teacher.scores[name].mean == alone.estimates[name].mean
    assert {"kl_from_teacher", "kl_to_teacher"}.isdisjoint(teacher.scores)


def test_the_student_before_is_tested_against_with_its_one_measurement_beside_every_seed(made):
    _, found = made
    before = read_scores(found.folder / "reference" / "before")
    entries = [entry for entry in read_study(found.folder).cells if entry.label == "ce"]
    ours = [read_scores(found.folder / entry.folder / entry.evaluation) for entry in entries]
    row = next(row for row in found.rows if row.label == "ce")
    raw = [
        statistics.difference_over_both([one["nll"] for one in scores], [before["nll"]] * 2).p_value
        for scores in (ours, [read_scores(found.folder / entry.folder / entry.evaluation)
                              for entry in read_study(found.folder).cells if entry.label == "fkl"])
    ]  # fmt: skip
    assert row.before["nll"].p_value == pytest.approx(statistics.holm(raw)[0])
    values = [one["nll"].value for one in ours]
    assert row.before["nll"].mean == pytest.approx(sum(values) / 2 - before["nll"].value)


def test_a_second_start_measures_nothing_again_and_the_tables_stay_equal(made):
    parts, found = made
    kept = {name: path for name, path in tree(found.folder).items() if not name.startswith(("cells", "costs"))}
    places = [found.folder / "reference" / name / "results.json" for name in ("before", "teacher")]
    times = [path.stat().st_mtime_ns for path in places]
    compare(parts.study("fkl", "ce", seeds=(0, 1)), silent)
    assert [path.stat().st_mtime_ns for path in places] == times
    assert {name: path for name, path in tree(found.folder).items() if not name.startswith(("cells", "costs"))} == kept


def test_what_kills_left_beside_the_lines_is_removed(made):
    parts, found = made
    lines = found.folder / "reference"
    kept = tree(lines)
    shutil.copytree(lines / "teacher", lines / ".tmp-0123456789abcdef")
    shutil.copytree(lines / "before", lines / ".tmp-old-0123456789abcdef-before")
    shutil.copy(lines / "before" / "answers.jsonl", lines / ".before.answers.jsonl")
    compare(parts.study("fkl", "ce", seeds=(0, 1)), silent)
    assert tree(lines) == kept


def test_what_kills_left_beside_an_evaluation_elsewhere_is_removed(made, tmp_path):
    parts, _ = made
    asked = parts.evaluation(parts.student, output=str(tmp_path / "out"))
    evaluate_run(asked, silent)
    names = sorted(path.name for path in tmp_path.iterdir())
    shutil.copytree(tmp_path / "out", tmp_path / ".tmp-0123456789abcdef")
    shutil.copy(tmp_path / "out" / "answers.jsonl", tmp_path / ".out.answers.jsonl")
    (tmp_path / ".tmp-mine").mkdir()
    evaluate_run(asked, silent)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, ".tmp-mine"])


def test_a_damaged_line_is_found_by_verify_and_measured_again(made):
    parts, found = made
    path = found.folder / "reference" / "teacher" / "results.json"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"perplexity", b"perplexitx", 1))
    problems = [one for one in verify(found.folder) if not one.passed]
    assert [(one.folder, one.what) for one in problems] == [("reference/teacher", "evaluation")]
    session, heard = Session(), Heard()
    cell = make_cells(parts.study("fkl", "ce", seeds=(0, 1)), session)[0]
    planned = plan_references({"student, before": cell.prepared}, (0, 1), session)
    measure_references(planned, found.folder, read_results(cell.evaluation), session, heard)
    assert any("measured again" in message for message in heard.messages("warning"))
    assert path.read_bytes() == whole
    assert all(one.passed for one in verify(found.folder))


def test_a_line_that_fails_costs_no_table_and_the_next_start_makes_it(made, tmp_path, monkeypatch):
    parts, found = made
    session, heard = Session(), Heard()
    cell = make_cells(parts.study("fkl", "ce", seeds=(0, 1)), session)[0]
    planned, beside = (
        plan_references({"student, before": cell.prepared}, (0, 1), session),
        read_results(cell.evaluation),
    )

    def failing(subject, *parts):
        if subject.facts.path == str(found.folder.parent / "teacher"):
            raise MachineError("DISK-01", "cannot be written: no space left")
        return read_results(found.folder / "reference" / "before")

    monkeypatch.setattr(references, "evaluate_subject", failing)
    measured = measure_references(planned, tmp_path, beside, session, heard)
    assert [one.label for one in measured.references] == ["student, before"]
    (failure,) = measured.failed
    assert (failure.loss, failure.exit_code) == ("teacher", 4)
    assert "no space left" in failure.log.read_text()
    assert "no line for teacher: cannot be written: no space left" in heard.messages("warning")
    other = replace(beside, protocol={**beside.protocol, "precision": "bfloat16"})
    measured = measure_references(planned, tmp_path, other, session, silent)
    assert measured.failed == measured.references == []
    assert "it would be measured in float32 here, and the students were in bfloat16" in measured.remarks[0]


def test_plan_and_status_name_the_lines(made):
    parts, found = made
    plan = plan_compare(parts.study("fkl", "ce", seeds=(0, 1)))
    assert plan.facts["reference lines"].text.startswith("student, before, teacher: 2 evaluations on the same rows")
    status = read(found.folder)
    assert [(one.cell, one.state) for one in status.references] == [("student, before", "done"), ("teacher", "done")]
    assert status.counts == {"done": 4}


def test_a_teacher_that_cannot_be_measured_has_no_line_and_a_reason(made):
    parts, _ = made
    session = Session()
    prepared = make_cells(parts.study("fkl", "ce"), session)[0].prepared
    pair = prepared.pair

    def planned_for(other):
        return plan_references({"student, before": replace(prepared, pair=other)}, (0,), session)

    for teacher, reason in (
        (None, "none was named"),
        (replace(pair.teacher, server=ServerConfig(model="m")), "it is behind a server"),
        (replace(pair.teacher, blend=Ensemble(("a", "b"), (0.5, 0.5))), "it is an ensemble"),
    ):
        planned = planned_for(replace(pair, teacher=teacher))
        assert [one.role for one in planned.measurements] == ["before"]
        assert planned.remarks[0].startswith(f"no line for the teacher: {reason}")
    apart = replace(pair, teacher_vocab=9, difference="tokenizers differ")
    planned = planned_for(apart)
    teacher = planned.measurements[1]
    assert teacher.config.evaluation.metrics == ("rougeL", "distinct")
    assert teacher.subject.reader is pair.teacher
    assert planned.remarks == (
        "the tokenizers differ: scores per token are of other tokens for the teacher, and left empty in its line",
    )


def test_a_report_made_later_has_the_lines_too(made):
    _, found = made
    comparison, made_groups, references = load([found.folder])
    assert [one.label for one in references] == ["student, before", "teacher"]
    page = report(comparison, made_groups, references)
    assert "Against no training" in page
    assert "Reference models" in page


def test_a_study_of_an_older_version_can_still_be_read(made, tmp_path):
    _, found = made
    document = json.loads((found.folder / "study.json").read_text())
    del document["references"]
    (tmp_path / "study.json").write_text(json.dumps(document))
    assert read_study(tmp_path).references == ()
    table = pq.read_table(found.folder / "results.parquet")
    contenders = table.filter([role == "contender" for role in table["role"].to_pylist()]).drop_columns(["role"])
    samples = pq.read_table(found.folder / "samples.parquet")
    samples = samples.filter([role == "contender" for role in samples["role"].to_pylist()]).drop_columns(["role"])
    pq.write_table(contenders, tmp_path / "results.parquet")
    pq.write_table(samples, tmp_path / "samples.parquet")
    write_digests(tmp_path)
    old = read_comparison(tmp_path)
    assert old.references == ()
    assert [row.scores for row in old.rows] == [row.scores for row in found.rows]


def test_a_student_made_at_random_has_a_start_for_every_seed(tmp_path):
    parts = Parts(tmp_path)
    config = parts.study("fkl", "ce", seeds=(0, 1), max_steps=2)
    config = config.model_copy(update={"student": "random:layers=1,width=8,heads=2"})
    found = compare(config, silent)
    before = found.references[0]
    assert before.seeds == (0, 1)
    starts = [read_results(found.folder / "reference" / f"before-s{seed}").estimates["nll"].mean for seed in (0, 1)]
    assert starts[0] != starts[1]
    assert before.scores["nll"].mean == pytest.approx(sum(starts) / 2)
    assert found.rows[0].before["nll"].unit == "seeds and examples"
    assert found.rows[0].parameters


def made_up(root: Path, gains, labels=("fkl", "rkl", "akl"), seeds=(0, 1, 2), steps=None):
    """Contenders, the student before at gain 0 and the teacher at gain 1, with made-up scores."""
    made = groups(root, labels, seeds, gains)
    (root / "out").mkdir()
    lines = [
        Reference(role, label, {None: evaluation(root / role / "eval", role, 7, gain, "said")})
        for role, label, gain in (("before", "student, before", 0.0), ("teacher", "teacher", 1.0))
    ]
    return made, lines


def test_who_is_worse_than_no_training_is_said_in_one_sentence(tmp_path):
    made, lines = made_up(tmp_path, (-0.5, 0.5, 0.0))
    rates = {"fkl": (5e-4, (5e-4,)), "rkl": (5e-4, (5e-4,))}
    found = conclude(made, ComparisonMeta("fkl", rates=rates), tmp_path / "out", lines)
    worse = [note for note in found.notes if note.startswith("worse than no training")]
    assert len(worse) == 1
    assert worse[0].endswith("Rouge-L, perplexity, NLL: fkl")
    assert "a family of its own" in worse[0]
    likely = next(note for note in found.notes if note.startswith("likely reasons, not tested here"))
    assert "the learning rate (0.0005, the only one tried) may be too high" in likely
    assert "the budget (10 steps, 1,000 response tokens)" in likely
    assert any(note.startswith("better than no training") and note.endswith("NLL: rkl") for note in found.notes)
    text = (tmp_path / "out" / "table.md").read_text()
    assert "## Difference to the student before training, paired" in text


def test_the_share_of_the_gap_is_in_the_tables(tmp_path):
    made, lines = made_up(tmp_path, (0.25, 0.5, 1.0))
    found = conclude(made, ComparisonMeta("fkl"), tmp_path / "out", lines)
    shares = {row.label: row.closed["rougeL"] for row in found.rows}
    for label, share in (("fkl", 0.25), ("rkl", 0.5), ("akl", 1.0)):
        assert shares[label].low < share < shares[label].high, label
        assert shares[label].mean == pytest.approx(share, abs=0.15)
    assert "## Share of the gap" in (tmp_path / "out" / "table.md").read_text()
    assert any(note.startswith("share of the gap") and "perplexity" in note for note in found.notes)
    row = next(line for line in (tmp_path / "out" / "table.csv").read_text().splitlines() if line.startswith("akl"))
    assert f"{shares['akl'].mean}" in row


def test_where_the_teacher_is_no_better_no_share_is_given(tmp_path):
    made, (before, teacher) = made_up(tmp_path, (0.25, 0.5, 1.0))
    found = conclude(made, ComparisonMeta("fkl"), None, [before, replace(teacher, found=before.found)])
    assert not any(any(row.closed.values()) for row in found.rows)
    assert any(note.startswith("no share of a gap in Rouge-L, perplexity, NLL") for note in found.notes)
    assert any(note.startswith("no objective is worse than no training") for note in found.notes)


def test_without_reference_lines_nothing_is_said_of_them(tmp_path):
    (tmp_path / "out").mkdir()
    found = conclude(groups(tmp_path), ComparisonMeta("fkl"), tmp_path / "out")
    assert found.references == ()
    assert not any("no training" in note for note in found.notes)
    assert "training, paired" not in (tmp_path / "out" / "table.md").read_text()


def test_fronts_are_taken_against_counts_and_never_against_seconds(tmp_path):
    made = groups(tmp_path, gains=(0.0, 0.2, 0.5))
    (tmp_path / "out").mkdir()
    timed = [
        Group(one.label, {seed: (replace(run, seconds=place + 1.0), found) for seed, (run, found) in one.runs.items()})
        for place, one in enumerate(made)
    ]
    found = conclude(timed, ComparisonMeta("fkl"), tmp_path / "out")
    assert not any("seconds" in fronts for fronts in found.pareto.values())
    assert {row.seconds_range for row in found.rows} == {(1.0, 1.0), (2.0, 2.0), (3.0, 3.0)}


def against_start_of(gains, rates=None):
    """The sentences for made-up differences to the start: label -> score -> difference, all sure."""

    def sure(mean):
        return Estimate(mean, mean, mean, 9, "examples", p_value=0.001)

    rows = [
        ComparisonRow(
            label, (0,), {}, {}, 10, 100, 1.0, 1, student_tokens=10, teacher_tokens=0 if label == "ce" else 10,
            before={score: sure(mean) for score, mean in found.items()},
        )
        for label, found in gains.items()
    ]  # fmt: skip
    infos = [ScoreInfo("perplexity", "lower", "perplexity", ""), ScoreInfo("kl", "lower", "kl_to_teacher", "")]
    one = sure(3.0)
    before = ReferenceRow("before", "student, before", {"perplexity": one, "kl": one})
    lines = against_start(rows, [before, ReferenceRow("teacher", "teacher", {"perplexity": one})], infos, rates or {})
    return next((line for line in lines if line.startswith("likely reasons")), "")


def test_likely_reasons_follow_from_what_the_table_shows():
    # nobody gained and the losers came nearer: the student was near its best
    said = against_start_of({"fkl": {"perplexity": 0.1, "kl": -0.1}, "rkl": {"perplexity": 0.2, "kl": -0.1}})
    assert "fkl, rkl came closer to the teacher (kl), so the student was probably near the best" in said
    assert "gained where" not in said
    # another contender gained at the same budget: it is not the student
    said = against_start_of({"fkl": {"perplexity": -0.1, "kl": -0.1}, "rkl": {"perplexity": 0.2, "kl": -0.1}})
    assert "fkl gained where rkl lost, so the student had room" in said
    assert "near the best" not in said
    # an objective that asks no teacher and only moves away from it
    said = against_start_of({"fkl": {"perplexity": -0.1}, "ce": {"perplexity": -0.1, "kl": 0.3}})
    assert said.endswith("ce does not use the teacher, so it need not come closer to it")
    # rates: one alone, or the lowest of those tried
    losing = {"fkl": {"perplexity": 0.1}, "rkl": {"perplexity": 0.1}}
    said = against_start_of(losing, {"fkl": (1e-3, (1e-3,)), "rkl": (1e-4, (1e-4, 1e-3))})
    assert "the learning rate (0.001, the only one tried) may be too high: --tune lr=0.0001,0.000333,0.001" in said
    assert "the lowest of the learning rates tried (0.0001, 0.001) may be too high still" in said
    said = against_start_of(losing, {"fkl": (1e-3, (1e-4, 1e-3)), "rkl": (1e-3, (1e-4, 1e-3))})
    assert "rate" not in said
    assert "the budget (10 steps, 100 response tokens)" in said
