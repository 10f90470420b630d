"""Benchmarks in a comparison: paired document by document, with intervals over seeds and documents."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import study
from kdcli.config.schema import BenchmarkConfig, CompareConfig, DataConfig, EvalSettings
from kdcli.distill.prepare import prepare_run
from kdcli.errors import InputError, UsageError
from kdcli.evaluation.lm_eval.run import values_of
from kdcli.evaluation.lm_eval.tasks import asked_of
from kdcli.evaluation.results import read_results, read_scores
from kdcli.events import silent
from kdcli.loading.session import Session
from kdcli.statistics import difference_over_both, over_both
from kdcli.study.compare import compare
from kdcli.study.finished import compare_runs
from kdcli.study.results import read_comparison
from shell import kd

torch.set_num_threads(1)

TASK = """\
task: colours
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
metadata: {version: 1.0}
"""
ROWS = [
    {"question": f"{word} is", "choices": ["a b", "c d", "e f"], "answer": place % 3}
    for place, word in enumerate(["sky", "grass", "leaf", "blood", "snow", "coal", "sun", "sea", "milk", "rose"])
]


def write_task(folder: Path, rows=ROWS) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "colours.yaml").write_text(TASK)
    return folder / "colours.yaml"


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return study.Parts(tmp_path_factory.mktemp("tasks"))


def settings(parts, *losses: str, seeds=(0, 1), name="study") -> CompareConfig:
    task = write_task(parts.root / "tasks")
    config = parts.study(*losses, seeds=seeds, name=name, max_steps=4, lr=0.1)
    few = EvalSettings(metrics=("perplexity",))
    return config.model_copy(update={"evaluation": few, "benchmarks": BenchmarkConfig(tasks=(str(task),))})


@pytest.fixture(scope="module")
def made(parts):
    return compare(settings(parts, "fkl", "rkl"), silent)


def evaluations(folder: Path, label: str) -> list[Path]:
    return sorted(folder.glob(f"cells/{label}-s*/eval/test"))


def test_a_study_measures_tasks_beside_its_rows(made):
    assert [info.name for info in made.scores] == ["perplexity", "nll", "colours_acc"]
    for row in made.rows:
        folders = evaluations(made.folder, row.label)
        scores = [read_scores(folder)["colours_acc"] for folder in folders]
        assert row.scores["colours_acc"] == over_both(scores)
        assert row.scores["colours_acc"].mean == pytest.approx(
            np.mean([read_results(folder).estimates["colours_acc"].mean for folder in folders])
        )


def test_differences_are_paired_by_seed_and_document(made):
    sides = [
        [read_scores(folder)["colours_acc"] for folder in evaluations(made.folder, label)] for label in ("rkl", "fkl")
    ]
    expected = difference_over_both(*sides)
    found = made.rows[1].differences["colours_acc"]
    assert (found.mean, found.low, found.high) == (expected.mean, expected.low, expected.high)
    by_hand = [
        np.mean(np.subtract(*(side[seed].sums[:, 0] for side in sides)))
        for seed in (0, 1)
    ]  # fmt: skip
    assert found.mean == pytest.approx(np.mean(by_hand))
    assert any(ours.sums.tolist() != theirs.sums.tolist() for ours, theirs in zip(*sides, strict=True))


def test_tables_are_made_again_from_the_tidy_files(made):
    again = read_comparison(made.folder)
    assert again.rows == made.rows
    assert "colours_acc" in (made.folder / "table.md").read_text()
    assert "colours_acc" in (made.folder / "report.html").read_text()


def test_what_is_measured_is_not_measured_again_until_a_file_of_the_task_changes(parts, made):
    before = {folder: (folder / "results.json").stat().st_mtime_ns for folder in evaluations(made.folder, "*kl")}
    assert len(before) == 4
    config = settings(parts, "fkl", "rkl")
    compare(config, silent)
    assert {folder: (folder / "results.json").stat().st_mtime_ns for folder in before} == before
    asked = asked_of(config.benchmarks)
    write_task(parts.root / "tasks", ROWS[:8])
    assert asked_of(config.benchmarks) != asked
    write_task(parts.root / "tasks")
    assert asked_of(config.benchmarks) == asked


def unmeasured(made, label, place):
    """A copy of a run of the study without its evaluations."""
    run = evaluations(made.folder, label)[0].parents[1]
    return shutil.copytree(run, place / label, ignore=shutil.ignore_patterns("eval", ".lock"))


def test_finished_runs_are_compared_by_tasks_measured_later(parts, made, tmp_path):
    task = write_task(parts.root / "tasks")
    runs = []
    for label in ("fkl", "rkl"):
        run = unmeasured(made, label, tmp_path)
        said = kd(
            "eval", str(run), "--data", str(parts.test), "--metric", "perplexity", "--tasks", str(task),
            "--device", "cpu", "--set", "benchmarks.limit=6", folder=parts.root,
        )  # fmt: skip
        assert said.code == 0, said.err
        runs.append(run)
    both = compare_runs(runs, None, silent)
    difference = both.rows[1].differences["colours_acc"]
    assert (difference.count, difference.unit) == (6, "examples")
    assert difference.p_value is not None


def test_other_documents_are_refused(parts, made, tmp_path):
    ours, theirs = evaluations(made.folder, "fkl")[0].parents[1], unmeasured(made, "rkl", tmp_path)
    said = kd(
        "eval", str(theirs), "--data", str(parts.test), "--metric", "perplexity", "--device", "cpu",
        "--tasks", str(write_task(parts.root / "tasks")), "--set", "benchmarks.limit=4", folder=parts.root,
    )  # fmt: skip
    assert said.code == 0, said.err
    with pytest.raises(InputError, match="task colours differs") as caught:
        compare_runs([ours, theirs], None, silent)
    assert caught.value.code == "CMP-01"


def test_a_wrong_task_is_found_before_anything_is_trained(parts):
    config = settings(parts, "fkl", "rkl", name="wrong")
    config = config.model_copy(update={"benchmarks": BenchmarkConfig(tasks=("gone.yaml",))})
    with pytest.raises(InputError, match=r"gone\.yaml: not found") as caught:
        compare(config, silent)
    assert caught.value.code == "BENCH-02"
    assert not (parts.root / "wrong").exists()


def test_tasks_without_rows_to_measure_on_are_refused(parts):
    task = write_task(parts.root / "tasks")
    bare = parts.run().model_copy(
        update={"data": DataConfig(train=str(parts.train)), "benchmarks": BenchmarkConfig(tasks=(str(task),))}
    )
    with pytest.raises(UsageError, match="nothing is measured after training"):
        prepare_run(bare, Session())


def said(values, name="acc", chosen="none"):
    return [{"doc_id": place, "filter": chosen, name: value} for place, value in enumerate(values)]


def test_documents_of_a_group_are_those_of_its_tasks():
    samples = {"one": said([1.0, 0.0]), "two": said([1.0, 1.0])}
    found = {"samples": samples, "group_subtasks": {"both": ["inner", "one"], "inner": ["two"]}}
    assert values_of(found, "both", "acc", "none", 0.75) == (1.0, 1.0, 1.0, 0.0)
    assert values_of(found, "one", "acc", "none", 0.5) == (1.0, 0.0)


@pytest.mark.parametrize("values, value", [([1.0, 0.0], 0.9), ([(1, 0), (0, 0)], 0.5), ([], 0.5), ([None, 1.0], 0.5)])
def test_a_score_that_is_no_mean_over_documents_has_none(values, value):
    assert values_of({"samples": {"t": said(values)}}, "t", "acc", "none", value) is None
    assert values_of({}, "t", "acc", "none", value) is None


def test_documents_are_those_of_the_filter():
    samples = {"t": [*said([1.0, 1.0], chosen="strict"), *said([0.0, 1.0])]}
    assert values_of({"samples": samples}, "t", "acc", "none", 0.5) == (0.0, 1.0)
