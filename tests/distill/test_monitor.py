"""Evaluation while a student is trained: it changes no bit, keeps the best, ends early, survives a kill."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

import study
import tiny
from kdcli.config.schema import DataConfig, EvalConfig, EvalSettings, GenerationConfig, MonitorConfig
from kdcli.distill.run import distill
from kdcli.errors import ExperimentChangedError, KDError, UsageError
from kdcli.evaluation.evaluate import evaluate_run
from kdcli.events import silent
from kdcli.study.finished import load_runs
from kdcli.study.verify import verify

torch.set_num_threads(1)

SMALL = EvalSettings(metrics=("perplexity",), generation=GenerationConfig(max_new_tokens=4, seeds=(1, 2)))


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    made = study.Parts(tmp_path_factory.mktemp("monitor"))
    made.student = tiny.folder(made.root / "dropout", "gpt2", seed=2, resid_pdrop=0.3, n_embd=8)
    return made


def settings(parts, name, monitor=None, data=None, **train):
    config = parts.run(name, loss="ce", **{"max_steps": 12, "save_every": 5, "lr": 3e-2, **train})
    changes = {"monitor": MonitorConfig(**(monitor or {})), "evaluation": SMALL, "data": data or config.data}
    return config.model_copy(update=changes)


def lines(record):
    return [json.loads(line) for line in (record.folder / "metrics.jsonl").read_text().splitlines()]


def measured(record):
    return {line["step"]: line["evaluation"]["scores"] for line in lines(record) if "evaluation" in line}


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def bare(parts):
    return distill(settings(parts, "bare"), silent)


def test_without_development_rows_the_run_and_every_table_made_from_it_say_so(parts):
    heard = study.Heard()
    found = distill(settings(parts, "chosen", {"every": 6, "patience": 9}, max_steps=6), heard)
    said = [message for message in heard.messages("warning") if message.startswith("no development rows")]
    assert len(said) == 1
    assert "best/, the end of training (monitor.patience) are chosen by the held-out rows" in said[0]
    note = "the training of chosen followed the held-out rows that it is measured on: its scores are too good"
    assert note in found.evaluation.notes
    other = distill(settings(parts, "chosen-not", max_steps=6, seed=1), silent)
    assert not any("held-out rows that it is measured on" in one for one in other.evaluation.notes)
    groups, remarks = load_runs([found.folder, other.folder], silent)
    assert remarks.count(note) == 0
    assert sum(note in record.notes for runs in groups.values() for _, record in runs.values()) == 1
    best = EvalConfig(model=str(found.folder / "best"), data=DataConfig(eval=str(parts.test)), evaluation=SMALL)
    assert "chosen/best was chosen by the held-out rows that it is measured on: its scores are too good" in (
        evaluate_run(best, silent).notes
    )
    data = parts.data().model_copy(update={"dev": str(parts.train)})
    heard = study.Heard()
    distill(settings(parts, "developed", {"every": 6, "patience": 9}, data, max_steps=6), heard)
    assert not any("development rows" in message for message in heard.messages("warning"))


@pytest.mark.parametrize("metrics", [("perplexity",), ("rougeL", "kl_to_teacher")])
def test_looking_changes_no_bit_of_the_student(parts, bare, metrics):
    heard = study.Heard()
    found = distill(settings(parts, f"looked-{metrics[0]}", {"every": 3, "metrics": metrics}), heard)
    assert weights(found.model) == weights(bare.model)
    cut = [note for note in heard.messages("note") if note.startswith("evaluation while training: ")]
    assert any("answers were cut at" in note for note in cut) == ("rougeL" in metrics)
    plain = [{name: value for name, value in line.items() if name != "evaluation"} for line in lines(found)]
    assert plain == lines(bare)
    assert list(measured(found)) == [3, 6, 9, 12]
    assert set(measured(found)[3]) >= set(metrics)


@pytest.fixture(scope="module")
def looked(parts):
    heard = study.Heard()
    return distill(settings(parts, "looked", {"every": 2, "rows": 5}), heard), heard


def test_the_best_student_is_kept_and_is_a_model_folder(parts, looked):
    record, heard = looked
    values = {step: scores["perplexity"] for step, scores in measured(record).items()}
    best = min(values, key=lambda step: (values[step], step))
    assert json.loads((record.folder / "best" / "manifest.json").read_text())["step"] == best
    config = EvalConfig(
        model=str(record.folder / "best"), data=DataConfig(eval=str(parts.test)), hardware=parts.run().hardware,
        evaluation=EvalSettings(metrics=("perplexity",)), output=str(parts.root / "all"),
    )  # fmt: skip
    found = evaluate_run(config, silent)
    assert found.examples == 10
    assert {check.folder for check in verify(record.folder) if check.passed} >= {"best", "model"}
    assert any("the best so far, kept in best/" in note for note in heard.messages("note"))


def test_the_sample_is_fixed_and_its_score_is_that_of_kd_eval(parts, looked):
    record, _ = looked
    rows = parts.test.read_text().splitlines()
    sample = parts.root / "sample.jsonl"
    sample.write_text("".join(rows[place * 10 // 5] + "\n" for place in range(5)))
    config = parts.evaluation(
        record.folder / "best", teacher=None, data=DataConfig(eval=str(sample)),
        evaluation=EvalSettings(metrics=("perplexity",)),
    )  # fmt: skip
    kept = json.loads((record.folder / "best" / "manifest.json").read_text())
    assert evaluate_run(config, silent).estimates["perplexity"].mean == pytest.approx(kept["value"], rel=1e-6)


def test_development_rows_come_before_held_out_ones(parts):
    data = parts.data().model_copy(update={"dev": str(parts.train), "eval_limit": 3})
    found = distill(settings(parts, "dev", {"every": 12}, data), silent)
    other = distill(settings(parts, "test", {"every": 12}), silent)
    assert measured(found) != measured(other)


def test_training_ends_when_the_score_stays_where_it_is(parts):
    config = settings(parts, "early", {"every": 1, "patience": 3}, lr=1.0)
    heard = study.Heard()
    record = distill(config, heard)
    values = [scores["perplexity"] for scores in measured(record).values()]
    assert record.steps == len(values) < 12
    assert min(values[-3:]) >= min(values[:-3])
    assert any("has not improved for 3 evaluations" in note for note in heard.messages("note"))
    before = study.tree(record.folder)
    assert distill(config, silent).already_done
    assert study.tree(record.folder) == before
    with pytest.raises(ExperimentChangedError, match="monitor"):
        distill(settings(parts, "early", {"every": 1, "patience": 4}, lr=1.0), silent)


class Stopped(Exception):
    """Ends a run as a kill does: nothing is saved any more."""


def stopping_at(step):
    def report(event):
        if event.kind == "note" and event.message.startswith(f"step {step}:"):
            raise Stopped

    return report


@pytest.mark.parametrize("patience, lr", [(None, 3e-2), (4, 1.0)])
def test_a_killed_run_goes_on_to_the_same_bits(parts, patience, lr):
    monitor = {"every": 1, "patience": patience}
    whole = distill(settings(parts, f"whole-{patience}", monitor, lr=lr, save_every=2), silent)
    config = settings(parts, f"killed-{patience}", monitor, lr=lr, save_every=2)
    for step in (1, 3, 4, 5):
        with pytest.raises(Stopped):
            distill(config, stopping_at(step))
    found = distill(config, silent)
    assert found.steps == whole.steps
    assert (found.folder / "metrics.jsonl").read_bytes() == (whole.folder / "metrics.jsonl").read_bytes()
    assert weights(found.model) == weights(whole.model)
    assert weights(found.folder / "best") == weights(whole.folder / "best")


def test_scores_that_are_no_numbers_do_not_end_the_run(parts, monkeypatch):
    from kdcli.errors import NumericsError
    from kdcli.evaluation import scoring

    def broken(*_, **__):
        raise NumericsError("METRIC-05", "perplexity is not a number", where="here", fix="look")

    monkeypatch.setattr(scoring, "score_tokens", broken)
    config = settings(parts, "nan", {"every": 4}, parts.data().model_copy(update={"eval": None, "dev_share": 0.3}))
    heard = study.Heard()
    record = distill(config, heard)
    assert measured(record) == {4: {}, 8: {}, 12: {}}
    assert not (record.folder / "best").exists()
    assert len([text for text in heard.messages("warning") if "not a number" in text]) == 3


@pytest.mark.parametrize(
    ("monitor", "data", "what"),
    [
        ({"patience": 2}, {}, "there are none"),
        ({"every": 2}, {"eval": None}, "no rows to evaluate on"),
        ({"every": 2, "metrics": ("length",)}, {}, "no score says which student is better"),
        ({"every": 2, "by": "rougeL"}, {}, '"rougeL" says not which student is better'),
        ({"every": 2, "metrics": ("exposure_bias",)}, {}, "after training only"),
        ({"every": 2, "metrics": ("perplexiti",)}, {}, "perplexity"),
    ],
)
def test_what_cannot_be_watched_is_one_line(parts, monitor, data, what):
    config = settings(parts, "refused", monitor, parts.data().model_copy(update=data))
    with pytest.raises(KDError, match=what) as caught:
        distill(config, silent)
    assert isinstance(caught.value, UsageError)
    assert not (parts.root / "refused").exists()


def test_best_weights_differ_from_the_last_ones_where_they_should(looked):
    record, _ = looked
    values = {step: scores["perplexity"] for step, scores in measured(record).items()}
    same = min(values.values()) == values[12]
    ours, last = (load_file(record.folder / name / "model.safetensors") for name in ("best", "model"))
    assert same == all(torch.equal(ours[name], last[name]) for name in last)
    assert all(math.isfinite(value) for value in values.values())
