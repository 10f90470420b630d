"""What does not go together is refused before a weight is read: all of it at once, by a plan as by the run itself."""

import json

import pytest

import shell
import study
import tiny
from kdcli.cli.settings import output_schema
from kdcli.config.schema import EvalSettings, GenerationConfig, MonitorConfig
from kdcli.distill.prepare import prepare_run
from kdcli.errors import InputError, KDError, UsageError
from kdcli.events import silent
from kdcli.loading.session import Session
from kdcli.study.compare import compare, plan_compare


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return study.Parts(tmp_path_factory.mktemp("parts"))


def words(parts, command, *further):
    return (
        command, *further, "--teacher", str(parts.teacher), "--student", str(parts.student),
        "--data", str(parts.train), "--eval-data", str(parts.test), "--device", "cpu",
    )  # fmt: skip


def test_two_independent_faults_of_one_command_are_both_told(parts):
    said = shell.kd(*words(parts, "plan", "--loss", "minillm", "--metric", "token_temperature"))
    codes = [line.split("]")[0].removeprefix("kd: error[") for line in said.error_lines]
    assert codes == ["PAIR-07", "EVAL-01"]
    assert said.code == UsageError.exit_code
    assert all("Fix: " in line for line in said.error_lines)
    printed = json.loads(shell.kd(*words(parts, "plan", "--loss", "minillm", "--metric", "answers", "--json")).out)
    assert (printed["error"]["code"], printed["error"].get("also")) == ("PAIR-07", None)
    lacking = words(parts, "plan", "--loss", "minillm", "--metric", "token_temperature", "--json")
    found = json.loads(shell.kd(*lacking).out)
    assert [one["code"] for one in (found["error"], *found["error"]["also"])] == codes
    pytest.importorskip("jsonschema").Draft202012Validator(output_schema()).validate(found)


def test_metrics_that_lack_different_things_are_told_apart_and_those_that_lack_the_same_together(parts):
    line = words(
        parts, "plan", "--loss", "ce", "--metric", "kl_to_teacher,on_policy_kl,token_temperature", "--eval-every", "2"
    )
    without = [word for place, word in enumerate(line) if "--teacher" not in (word, line[place - 1])]
    said = shell.kd(*without, "--set", "monitor.metrics=speculative")
    assert [line.partition("]: ")[2].partition(". Fix")[0] for line in said.error_lines] == [
        "--metric: kl_to_teacher needs a teacher",
        "--metric: token_temperature needs development rows",
        "monitor.metrics: speculative is measured after training only",
    ]


def test_faults_in_several_lines_of_a_comparison_are_all_told_each_once(parts):
    said = shell.kd(
        *words(parts, "compare", "minillm", "fkl@replay", "fkl"), "--metric", "token_temperature", "--dry-run"
    )
    assert [line.split(":")[1].strip() for line in said.error_lines] == [
        "error[PAIR-07]",
        "error[EVAL-01]",
        "error[PAIR-04]",
    ]
    assert said.code == UsageError.exit_code


def test_the_exit_code_is_that_of_the_first_fault(parts):
    wrong = parts.run(loss="minillm").model_copy(update={"data": parts.data().model_copy(update={"train": "missing"})})
    with pytest.raises(UsageError) as caught:
        prepare_run(wrong, Session())
    assert [type(fault) for fault in caught.value.also] == [InputError]


GENERATION = GenerationConfig(max_new_tokens=6, seeds=(1,))
LATER = [
    ("ce", "none", "kl_to_teacher", "EVAL-01"),
    ("ce", "none", "speculative", "EVAL-01"),
    ("fkl", "one", "token_temperature", "EVAL-01"),
    ("ce", "one", "answer_temperature", "EVAL-01"),
    ("fkl", "one", "answers", "DATA-05"),
    ("fkl", "two", "on_policy_kl", "CLI-22"),
    ("ce", "two", "exposure_bias", "CLI-22"),
    ("fkl", "one", "on_policy_kl", "EVAL-06"),
    ("ce@student", "short", "perplexity", "MOD-22"),
]
"""Objective, teacher and metric that were trained, and refused only when the student was measured; error code."""


def chosen(parts, kind, metric, code):
    teachers = {"none": None, "two": f"{parts.teacher}+{parts.root / 'other'}"}
    generation = GENERATION.model_copy(update={"max_new_tokens": 125} if code == "EVAL-06" else {})
    student = {"student": str(parts.root / "short")} if kind == "short" else {}
    evaluation = EvalSettings(metrics=(metric,), generation=generation)
    return {"teacher": teachers.get(kind, str(parts.teacher)), "evaluation": evaluation, **student}


@pytest.fixture(scope="module")
def others(parts):
    tiny.folder(parts.root / "other", seed=5)
    tiny.folder(parts.root / "short", seed=6, max_position_embeddings=8)


@pytest.mark.parametrize("loss, kind, metric, code", LATER, ids=[f"{one[1]}-{one[2]}" for one in LATER])
def test_a_dry_run_and_a_run_refuse_what_cannot_be_measured_later(parts, others, loss, kind, metric, code):
    changes = chosen(parts, kind, metric, code)
    with pytest.raises(KDError) as planned:
        plan_compare(parts.study(loss).model_copy(update={**changes, "vary": ("lr=1e-3,1e-2",)}))
    with pytest.raises(KDError) as trained:
        prepare_run(parts.run(loss=loss).model_copy(update=changes), Session())
    assert planned.value.code == trained.value.code == code
    assert str(trained.value) in map(str, (planned.value, *planned.value.also))


@pytest.mark.parametrize("work", [plan_compare, lambda config: compare(config, silent)], ids=["plan", "run"])
def test_a_tuned_comparison_is_refused_for_what_its_chosen_runs_would_be_measured_by(parts, work):
    tuned = parts.study("fkl", "rkl").model_copy(
        update={"tune": ("lr=1e-3,1e-2",), "tune_by": "nll", "evaluation": EvalSettings(metrics=("answers",))}
    )
    with pytest.raises(InputError) as caught:
        work(tuned)
    assert caught.value.code == "DATA-05"


def test_default_metrics_that_cannot_be_had_are_no_fault(parts):
    run = parts.run(loss="ce").model_copy(update={"teacher": None, "evaluation": EvalSettings()})
    assert prepare_run(run, Session()).test is not None
    follows = run.model_copy(update={"monitor": MonitorConfig(every=2)})
    assert prepare_run(follows, Session()).validation is not None
