"""Metrics of sampled answers, from the command's settings to the files."""

import json
from dataclasses import replace

import numpy as np
import pytest

import study
from kdcli.config.schema import CacheConfig, EvalConfig, EvalSettings, GenerationConfig
from kdcli.errors import InputError, UsageError
from kdcli.evaluation.evaluate import evaluate_run
from kdcli.evaluation.results import read_results, read_scores
from kdcli.events import silent
from kdcli.metrics.curve import as_json
from kdcli.metrics.score import total
from kdcli.statistics import over_examples
from kdcli.teachers.load import cache

OWN = ("own_kl", "own_distance", "own_calibration", "exposure_bias", "speculative")
CURVES = {"own_kl", "ex_acc_err", "accumulated_error", "acceptance"}


def settings(*metrics, **changes):
    generation = GenerationConfig(max_new_tokens=6, seeds=(1, 2), **changes.pop("generation", {}))
    return EvalSettings(metrics=metrics, generation=generation, **changes)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return study.Parts(tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="module")
def record(parts):
    asked = settings("rougeL", *OWN, exposure_lengths=(2,), draft_tokens=3)
    config = parts.evaluation(parts.student, evaluation=asked, output=str(parts.root / "out"), pictures=False)
    return evaluate_run(config, silent)


def test_every_score_has_an_interval_over_examples(record):
    assert {"own_kl_to_teacher", "own_acceptance", "ex_acc_err", "ex_acc_err_2", "spec_tokens_per_call"} <= set(
        record.estimates
    )
    for name in record.estimates:
        estimate = record.estimates[name]
        assert (estimate.unit, estimate.count) == ("examples", 10)
        assert estimate.low <= estimate.mean <= estimate.high


def test_stored_statistics_give_the_same_scores_and_hold_every_answer(record):
    assert replace(read_results(record.folder), curves=()) == replace(record, curves=())
    for name, score in read_scores(record.folder).items():
        assert over_examples(score) == record.estimates[name]
        assert score.answers.shape[:2] == (10, 2)
        np.testing.assert_allclose(total(score.answers.mean(1)), total(score.sums), rtol=1e-12)


def test_settings_say_how_answers_were_sampled(record):
    bias = next(info for info in record.infos if info.name == "ex_acc_err")
    assert (bias.metric, bias.input_kind) == ("exposure_bias", "own")
    assert "exposure_lengths:2|" in bias.settings
    assert "temp:1|top_p:1|seeds:1,2|max:6" in bias.settings


def test_curves_are_kept(record):
    kept = read_results(record.folder).curves
    assert {curve.name for curve in kept} >= CURVES
    assert [as_json(curve) for curve in kept] == [as_json(curve) for curve in record.curves]


def test_the_same_evaluation_gives_the_same_numbers(record, parts):
    asked = settings(*OWN, exposure_lengths=(2,), draft_tokens=3)
    again = evaluate_run(parts.evaluation(parts.student, evaluation=asked), silent)
    assert again.estimates == {name: record.estimates[name] for name in again.estimates}


def test_a_teacher_measured_against_itself(parts):
    found = evaluate_run(parts.evaluation(parts.teacher, evaluation=settings(*OWN)), silent).estimates
    assert found["ex_acc_err"].mean == found["own_kl_from_teacher"].mean == found["own_tvd"].mean == 0.0
    assert found["own_acceptance"].mean == found["spec_acceptance"].mean == found["own_agreement"].mean == 100.0


def test_a_cache_of_the_teacher_does_not_stand_for_it(parts, record):
    common = parts.common()
    made = cache(
        CacheConfig(
            teacher=str(parts.teacher), student=str(parts.student), hardware=common["hardware"],
            data=parts.data().model_copy(update={"train": str(parts.test)}), output=str(parts.root / "cache"),
        ),
        silent,
    )  # fmt: skip
    heard = study.Heard()
    asked = settings("own_kl", "teacher_distance")
    config = parts.evaluation(parts.student, evaluation=asked, teacher_cache=str(made.folder))
    found = evaluate_run(config, heard)
    assert found.estimates["own_kl_to_teacher"] == record.estimates["own_kl_to_teacher"]
    assert "sampled answers are in no cache: the teacher itself is run for own_kl" in heard.messages("note")


@pytest.mark.parametrize("metric", OWN)
def test_a_missing_teacher_is_one_line(parts, metric):
    with pytest.raises(UsageError, match=f"{metric} needs a teacher") as caught:
        evaluate_run(parts.evaluation(parts.student, teacher=None, evaluation=settings(metric)), silent)
    assert "--teacher" in caught.value.fix


def test_answers_made_elsewhere_have_no_distributions(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps({"prediction": "a", "reference": "a"}))
    with pytest.raises(UsageError, match="own_kl is measured on a model"):
        evaluate_run(EvalConfig(predictions=str(path), evaluation=settings("rougeL", "own_kl")), silent)


def test_a_length_no_answer_has_is_refused_before_anything_is_sampled(parts):
    heard = study.Heard()
    config = parts.evaluation(parts.student, evaluation=settings("exposure_bias", exposure_lengths=(7,)))
    with pytest.raises(InputError, match="exposure_lengths=7, but answers have 1 to 6 tokens"):
        evaluate_run(config, heard)
    assert not heard.messages("stage")


def test_tempered_samples_are_no_exposure_bias_by_the_book(parts):
    asked = settings("exposure_bias", "own_kl", generation={"temperature": 0.5})
    notes = evaluate_run(parts.evaluation(parts.student, evaluation=asked), silent).notes
    assert [note for note in notes if "temperature 0.5" in note] == [
        "exposure_bias is defined on answers sampled at temperature 1 and top-p 1; here: temperature 0.5 and top-p 1"
    ]
