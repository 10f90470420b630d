import json
import shutil

import pytest

from kdcli.config.schema import EvalSettings, GenerationConfig, TrainConfig
from kdcli.distill.run import distill
from kdcli.errors import InputError
from kdcli.evaluation.evaluate import evaluate_run
from kdcli.evaluation.results import read_results, read_samples, read_scores
from kdcli.storage import atomic
from kdcli.storage.run_dir import RunFolder
from kdcli.study.finished import load_runs
from kdcli.study.verify import verify
from study import Heard, Parts

GENERATION = GenerationConfig(max_new_tokens=4, seeds=(1,), temperature=0.0)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return Parts(tmp_path_factory.mktemp("together"))


@pytest.fixture(scope="module")
def first(parts):
    """A run that was evaluated with answers and without."""
    settings = EvalSettings(metrics=("rougeL", "perplexity", "ece"), generation=GENERATION)
    config = parts.run(loss="ce").model_copy(update={"evaluation": settings, "train": TrainConfig(max_steps=1)})
    return distill(config, Heard()).folder


@pytest.fixture
def run(first, tmp_path):
    return shutil.copytree(first, tmp_path / "run")


def measure(parts, run, *metrics, heard=None, **generation):
    settings = EvalSettings(metrics=metrics, generation=GENERATION.model_copy(update=generation))
    config = parts.evaluation(run, evaluation=settings, teacher=None)
    return evaluate_run(config, heard or Heard())


def test_fewer_metrics_take_no_score_answer_or_curve_away(parts, run):
    place = run / "eval" / "test"
    before, answers, curves = read_results(place), (place / "answers.jsonl").read_bytes(), read_results(place).curves
    found = measure(parts, run, "token_f1")
    assert [info.metric for info in found.infos] == ["token_f1"] * len(found.infos)
    after = read_results(place)
    assert {**before.estimates, **found.estimates} == after.estimates
    assert {**before.protocol["metrics"], **found.protocol["metrics"]} == after.protocol["metrics"]
    assert (place / "answers.jsonl").read_bytes() == answers
    assert after.curves == curves
    assert curves
    assert read_scores(place).keys() == after.estimates.keys()
    assert all(one.passed for one in verify(run))


def test_a_metric_without_answers_keeps_the_answers(parts, run):
    place = run / "eval" / "test"
    answers, texts = (place / "answers.jsonl").read_bytes(), read_samples(place)["predictions"].to_pylist()
    measure(parts, run, "brier_parts")
    assert (place / "answers.jsonl").read_bytes() == answers
    assert read_samples(place)["predictions"].to_pylist() == texts
    assert {"rougeL", "perplexity", "top1_brier"} <= read_results(place).estimates.keys()


def test_another_protocol_gets_another_folder(parts, run):
    place, heard = run / "eval" / "test", Heard()
    before = atomic.verify_folder(place)
    found = measure(parts, run, "rougeL", heard=heard, max_new_tokens=3)
    assert atomic.verify_folder(place) == before
    assert found.folder != place
    assert any("by another protocol" in message for message in heard.messages("note"))
    assert measure(parts, run, "token_f1", max_new_tokens=3).folder == found.folder
    assert {"rougeL", "token_f1"} <= read_results(found.folder).estimates.keys()
    assert measure(parts, run, "token_f1").folder == place
    assert set(RunFolder(run).evaluations()) == {"test", found.folder.name}


def test_runs_are_compared_by_the_protocol_they_share(parts, first, run, tmp_path):
    other = shutil.copytree(first, tmp_path / "other")
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["identity"]["train.seed"] = 7
    del manifest["digest"]
    (other / "manifest.json").write_text(json.dumps(manifest))
    status = json.loads((other / "status.json").read_text())
    del status["files"], status["digest"]
    (other / "status.json").write_text(json.dumps(status))
    measure(parts, run, "rougeL", max_new_tokens=3)
    shutil.rmtree(other / "eval" / "test")
    with pytest.raises(InputError):
        load_runs([run, other], Heard())
    measure(parts, other, "rougeL", max_new_tokens=3)
    groups, _ = load_runs([run, other], Heard())
    folders = [found.folder for runs in groups.values() for _, found in runs.values()]
    assert [folder.name == "test" for folder in folders] == [False, True]


def test_an_evaluation_that_is_damaged_is_made_again(parts, run):
    place, heard = run / "eval" / "test", Heard()
    with (place / "results.json").open("a") as file:
        file.write(" ")
    measure(parts, run, "perplexity", heard=heard)
    assert any("made again" in message for message in heard.messages("warning"))
    assert "rougeL" not in read_results(place).estimates
