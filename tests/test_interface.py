"""The Python interface does what the commands do, with the same settings by the same names."""

import subprocess
import sys

import pytest

import kdcli
from kdcli.cli.load_config import load_config
from kdcli.config.schema import CompareConfig, DistillConfig, EvalSettings, HardwareConfig, TrainConfig
from kdcli.errors import InputError, UsageError
from kdcli.interface import _configured
from study import Parts


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return Parts(tmp_path_factory.mktemp("interface"))


@pytest.fixture(scope="module")
def given(parts):
    return {
        "teacher": parts.teacher, "student": str(parts.student), "data": parts.train, "eval_data": parts.test,
        "max_steps": 4, "batch_size": 4, "lr": 5e-3, "device": "cpu", "metric": ["perplexity", "agreement"],
    }  # fmt: skip


def test_import_is_light():
    code = (
        "import sys, kdcli, kdcli.interface; kdcli.distill, kdcli.compare, kdcli.evaluate, kdcli.load_study;"
        "print([name for name in ('torch', 'transformers', 'pandas', 'numpy', 'typer') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_keywords_are_flags(given):
    typed = {
        "teacher": "t",
        "student": "s",
        "data": "d",
        "lr": "1e-4",
        "loss": "kl",
        "metric": ["ece"],
        "eval_data": "e",
    }
    by_flag = load_config(DistillConfig, None, ["train.clip=0.5"], typed)
    by_keyword = _configured(
        DistillConfig, None, {"teacher": "t", "student": "s", "data": "d", "learning_rate": 1e-4, "loss": "forward_kl",
                              "metric": ("ece",), "eval_data": "e", "settings": {"train.clip": 0.5}},
    )  # fmt: skip
    assert by_keyword == by_flag


def test_objects_sections_files_and_keywords_mean_the_same(tmp_path):
    wanted = DistillConfig(train=TrainConfig(lr=1e-3, clip=0.5), hardware=HardwareConfig(device="cpu"), output="o")
    file = tmp_path / "run.yaml"
    file.write_text("train:\n  lr: 1e-3\noutput: o\n")
    for config, more in [
        (wanted, {}),
        (None, {"train": TrainConfig(lr=1e-3, clip=0.5), "device": "cpu", "output": "o"}),
        (None, {"train": {"lr": 1e-3, "clip": 0.5}, "hardware": {"device": "cpu"}, "output": "o"}),
        (file, {"device": "cpu", "settings": {"train.clip": 0.5}}),
        (DistillConfig(train=TrainConfig(clip=0.5, lr=7), output="p"), {"device": "cpu", "lr": 1e-3, "output": "o"}),
    ]:
        assert _configured(DistillConfig, config, more) == wanted, (config, more)


MISTAKES = [
    ({"learnin_rate": 1}, "did you mean lr?"),
    ({"lr": -1}, "--lr"),
    ({"loss": "alk"}, "did you mean"),
    ({"settings": {"train.stepz": 3}}, "train.stepz"),
    ({"metric": ["rougel"]}, "did you mean rougeL"),
]


@pytest.mark.parametrize("settings, says", MISTAKES)
def test_a_mistake_is_named_before_anything_is_loaded(settings, says):
    with pytest.raises(UsageError) as refused:
        kdcli.distill(**settings)
    assert says in str(refused.value)


def test_a_run_an_evaluation_and_its_tables(parts, given):
    run = kdcli.distill(loss="akl", output=parts.root / "runs" / "akl", **given)
    assert (run.model / "config.json").is_file()
    assert list(run.steps["step"]) == [1, 2, 3, 4]
    assert run.evaluation is not None
    assert run.scores.loc["perplexity", "mean"] == run.record.evaluation.estimates["perplexity"].mean
    assert "perplexity" in run._repr_html_()
    again = kdcli.evaluate(run.folder, data=parts.test, teacher=parts.teacher, metric=["perplexity"], device="cpu")
    assert again.scores.loc["perplexity", "mean"] == run.scores.loc["perplexity", "mean"]
    low, mean, high = again.scores.loc["perplexity", ["low", "mean", "high"]]
    assert low < mean < high
    assert again._repr_html_().startswith("<table")


def test_a_study_is_a_table_and_is_loaded_again(parts, given):
    more = {name: value for name, value in given.items() if name != "metric"}
    told = []
    study = kdcli.compare(
        losses=["fkl", "ce"], seeds=[0, 1], output=parts.root / "study", report=told.append,
        evaluation=EvalSettings(metrics=("perplexity", "agreement")), **more,
    )  # fmt: skip
    assert told
    assert list(study.table.index) == ["student, before", "teacher", "fkl", "ce"]
    assert list(study.table.columns) == [info.name for info in study.comparison.scores]
    assert study.table.loc["fkl", "perplexity"] == study.comparison.rows[0].scores["perplexity"].mean
    assert set(study.differences.index.get_level_values("objective")) == {"ce"}
    found = study.differences.loc[("ce", "perplexity")]
    assert found["low"] < found["mean"] < found["high"]
    assert 0 < found["p"] <= 1
    loaded = kdcli.load_study(parts.root / "study")
    assert loaded.table.equals(study.table)
    assert loaded.scores.equals(study.scores)
    assert loaded._repr_html_().count("<tr") >= 5
    assert "fkl" in loaded.to("md")
    with pytest.raises(UsageError, match="is no form"):
        loaded.to("pdf")


def test_what_is_no_study_is_said(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        kdcli.load_study(tmp_path / "nothing")
    with pytest.raises(UsageError, match="a CompareConfig"):
        _configured(CompareConfig, DistillConfig(), {})
    assert isinstance(_configured(CompareConfig, None, {"losses": ["fkl", "rkl"]}), CompareConfig)
