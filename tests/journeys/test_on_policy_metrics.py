"""Metrics of sampled answers, from the command's settings to the files."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import study
from kdcli.comparison.cost import Cost
from kdcli.comparison.tables_store import Cell, ComparisonMeta, make_tidy, read_tidy, write_tidy
from kdcli.config.schema import CacheConfig, EvalConfig, EvalSettings, GenerationConfig
from kdcli.distill.records import RunRecord
from kdcli.errors import InputError, UsageError
from kdcli.evaluation.evaluate import evaluate_run
from kdcli.evaluation.results import read_results, read_scores
from kdcli.events import silent
from kdcli.metrics.curve import as_json
from kdcli.metrics.score import total
from kdcli.registry.catalog import EARLIER_NAMES
from kdcli.statistics import over_examples
from kdcli.teachers.load import cache
from mutations import mend_folder

OWN = ("on_policy_kl", "on_policy_distance", "on_policy_calibration", "exposure_bias", "speculative")
CURVES = {"on_policy_kl", "ex_acc_err", "accumulated_error", "acceptance"}


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
    assert {
        "on_policy_kl_to_teacher",
        "on_policy_acceptance",
        "ex_acc_err",
        "ex_acc_err_2",
        "spec_tokens_per_call",
    } <= set(record.estimates)
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


EARLIER = {now: before for before, now in EARLIER_NAMES.items()}


def as_written_earlier(text):
    """A text of a record under the names that metrics and scores had."""
    return re.sub(r"\w+", lambda word: EARLIER.get(word[0], word[0]), text)


def written_earlier(folder):
    """Give an evaluation the names that an earlier version wrote."""
    for name in ("results.json", "curves.json"):
        (folder / name).write_text(as_written_earlier((folder / name).read_text("utf-8")), "utf-8")
        mend_folder(folder / name)
    table = pq.read_table(folder / "samples.parquet")
    pq.write_table(table.rename_columns([*map(as_written_earlier, table.column_names)]), folder / "samples.parquet")
    mend_folder(folder / "samples.parquet")


def test_an_evaluation_of_an_earlier_version_is_read_and_added_to(parts, record, tmp_path):
    folder = Path(shutil.copytree(record.folder, tmp_path / "earlier"))
    written_earlier(folder)
    before = (folder / "results.json").read_text("utf-8")
    assert '"own_kl_from_teacher"' in before
    assert "on_policy" not in before
    read = read_results(folder)
    assert replace(read, curves=(), folder=record.folder) == replace(record, curves=())
    assert {curve.name for curve in read.curves} == {curve.name for curve in record.curves}
    stored = read_scores(folder)
    for name, score in read_scores(record.folder).items():
        assert over_examples(stored[name]) == over_examples(score) == record.estimates[name]
    asked = settings("own_kl", "truncation_rate", exposure_lengths=(2,), draft_tokens=3)
    added = evaluate_run(parts.evaluation(parts.student, evaluation=asked, output=str(folder)), silent)
    assert added.estimates["on_policy_kl_to_teacher"] == record.estimates["on_policy_kl_to_teacher"]
    now = read_results(folder).estimates
    assert now.keys() == {*record.estimates, "truncation_rate"}
    assert '"own_kl_from_teacher"' not in (folder / "results.json").read_text("utf-8")


def test_tables_of_an_earlier_version_give_the_same_comparison(parts, record, tmp_path):
    names = ("on_policy_kl_from_teacher", "on_policy_ece", "rougeL")
    infos = [info for info in record.infos if info.name in names]
    run = RunRecord(tmp_path / "run", "fkl", 0, 1, 1, 1.0, 1, {})
    tidy = make_tidy([Cell("fkl", run, record, Cost(1, 1, 1, 1, 1, 1, 1.0))], infos, ComparisonMeta("fkl"))
    write_tidy(tmp_path, tidy)
    for name in ("results.parquet", "samples.parquet"):
        table = pq.read_table(tmp_path / name)
        columns = [
            pa.array([*map(as_written_earlier, table[one].to_pylist())]) if one in ("score", "metric", "settings")
            else table[one]
            for one in table.column_names
        ]  # fmt: skip
        changed = pa.table(columns, names=[*map(as_written_earlier, table.column_names)])
        meta = {
            key: as_written_earlier(value.decode()).encode() for key, value in (table.schema.metadata or {}).items()
        }
        pq.write_table(changed.replace_schema_metadata(meta), tmp_path / name)
    assert pq.read_table(tmp_path / "results.parquet")["metric"].to_pylist()[1] == "own_kl"
    found = read_tidy(tmp_path)
    assert found.infos == tidy.infos
    assert found.runs == tidy.runs
    for name in names:
        assert over_examples(found.score("fkl", 0, name)) == over_examples(tidy.score("fkl", 0, name))


def test_a_teacher_measured_against_itself(parts):
    found = evaluate_run(parts.evaluation(parts.teacher, evaluation=settings(*OWN)), silent).estimates
    assert found["ex_acc_err"].mean == found["on_policy_kl_from_teacher"].mean == found["on_policy_tvd"].mean == 0.0
    assert (
        found["on_policy_acceptance"].mean
        == found["spec_acceptance"].mean
        == found["on_policy_agreement"].mean
        == 100.0
    )


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
    asked = settings("on_policy_kl", "teacher_distance")
    config = parts.evaluation(parts.student, evaluation=asked, teacher_cache=str(made.folder))
    found = evaluate_run(config, heard)
    assert found.estimates["on_policy_kl_to_teacher"] == record.estimates["on_policy_kl_to_teacher"]
    assert "sampled answers are in no cache: the teacher itself is run for on_policy_kl" in heard.messages("note")


@pytest.mark.parametrize("metric", OWN)
def test_a_missing_teacher_is_one_line(parts, metric):
    with pytest.raises(UsageError, match=f"{metric} needs a teacher") as caught:
        evaluate_run(parts.evaluation(parts.student, teacher=None, evaluation=settings(metric)), silent)
    assert "--teacher" in caught.value.fix


def test_answers_made_elsewhere_have_no_distributions(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps({"prediction": "a", "reference": "a"}))
    with pytest.raises(UsageError, match="on_policy_kl is measured on a model"):
        evaluate_run(EvalConfig(predictions=str(path), evaluation=settings("rougeL", "on_policy_kl")), silent)


def test_a_length_no_answer_has_is_refused_before_anything_is_sampled(parts):
    heard = study.Heard()
    config = parts.evaluation(parts.student, evaluation=settings("exposure_bias", exposure_lengths=(7,)))
    with pytest.raises(InputError, match="exposure_lengths=7, but answers have 1 to 6 tokens"):
        evaluate_run(config, heard)
    assert not heard.messages("stage")


def test_tempered_samples_are_no_exposure_bias_by_the_book(parts):
    asked = settings("exposure_bias", "on_policy_kl", generation={"temperature": 0.5})
    notes = evaluate_run(parts.evaluation(parts.student, evaluation=asked), silent).notes
    assert [note for note in notes if "temperature 0.5" in note] == [
        "exposure_bias is defined on answers sampled at temperature 1 and top-p 1; here: temperature 0.5 and top-p 1"
    ]
