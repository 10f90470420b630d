"""Calibration of a model folder: tokens and answers, before and after a temperature, as numbers, data and pictures."""

import json

import pytest
import torch

import study
import tiny
from kdcli.config.schema import DataConfig, EvalConfig, EvalSettings, HardwareConfig
from kdcli.errors import InputError, IntegrityError, NumericsError, UsageError
from kdcli.evaluation.evaluate import evaluate_run
from kdcli.evaluation.results import read_results, read_scores
from kdcli.events import silent
from kdcli.metrics.curve import as_json

ANSWERS = ("answers", "answer_bins", "answer_brier_parts", "answer_temperature")
TOKENS = ("ece", "token_bins", "brier_parts", "token_temperature")
COLOURS = ["red", "green", "blue"]


def rows(path, count=24, **changes):
    lines = [
        {"prompt": f"say {chr(97 + i % 26)}:", "choices": COLOURS, "answer": COLOURS[i % 3], **changes}
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibration")
    tiny.folder(folder / "student", seed=2)
    rows(folder / "test.jsonl")
    rows(folder / "dev.jsonl", 30)
    return folder


def measure(root, *metrics, dev="dev.jsonl", data="test.jsonl", model="student", **changes):
    settings = {name: changes.pop(name) for name in ("bins", "choice_score") if name in changes}
    return evaluate_run(
        EvalConfig(
            model=str(root / model),
            data=DataConfig(eval=str(root / data), dev=str(root / dev) if dev else None),
            hardware=HardwareConfig(device="cpu"),
            evaluation=EvalSettings(metrics=metrics, **settings),
            **changes,
        ),
        silent,
    )


@pytest.fixture(scope="module")
def record(root):
    return measure(root, *TOKENS, *ANSWERS, output=str(root / "out"))


def value(record, name) -> float:
    return record.estimates[name].mean


def test_the_choices_are_read_as_continuations_and_renormalised(record, root):
    student, tokenizer = tiny.model(seed=2), tiny.tokenizer()
    right = nll = 0.0
    for index in range(24):
        prompt = tokenizer(f"say {chr(97 + index % 26)}:", add_special_tokens=False)["input_ids"]
        scores = []
        for colour in COLOURS:
            answer = tokenizer(colour, add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                logp = student(torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
            scores.append(sum(logp[len(prompt) - 1 + k, token].item() for k, token in enumerate(answer)))
        renormalised = torch.tensor(scores).log_softmax(0)
        right += int(renormalised.argmax()) == index % 3
        nll -= renormalised[index % 3].item() / 24
    assert value(record, "accuracy") == pytest.approx(100 * right / 24)
    assert value(record, "answer_nll") == pytest.approx(nll, rel=1e-5)


def test_scaled_values_stand_beside_the_raw_ones(record):
    for prefix in ("", "answer_"):
        for name in ("ece", "brier", "nll"):
            assert {f"{prefix}{name}", f"{prefix}{name}_scaled"} <= set(record.estimates)
        assert record.estimates[f"{prefix}temperature"].low is None
    assert value(record, "answer_nll_scaled") <= value(record, "answer_nll") + 0.05


def test_values_without_temperature_are_the_same(record, root):
    alone = measure(root, "ece", "answers", dev=None)
    for name in ("ece", "brier", "nll", "accuracy", "answer_ece", "answer_brier"):
        assert alone.estimates[name] == record.estimates[name]


def test_scores_and_curves_read_back(record):
    again = read_results(record.folder)
    assert again == record
    scores = read_scores(record.folder)
    for name, estimate in record.estimates.items():
        assert scores[name].value == pytest.approx(estimate.mean, abs=1e-12)


def test_every_curve_is_data_and_two_pictures(record):
    names = {curve.name for curve in record.curves}
    assert names == {
        "reliability_tokens", "reliability_tokens_scaled", "reliability_answers", "reliability_answers_scaled",
    }  # fmt: skip
    written = json.loads((record.folder / "curves.json").read_text(encoding="utf-8"))
    assert written == [as_json(curve) for curve in record.curves]
    for name in names:
        assert (record.folder / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
        assert (record.folder / f"{name}.svg").stat().st_size > 5000


def test_pictures_can_be_left_out(root):
    folder = measure(root, "answers", output=str(root / "plain"), pictures=False).folder
    assert {path.suffix for path in folder.iterdir()} == {".json", ".parquet"}


def test_damaged_curves_are_named(record, tmp_path):
    folder = measure(record.folder.parent, "answers", output=str(tmp_path / "out"), pictures=False).folder
    (folder / "curves.json").write_text("[{}]", encoding="utf-8")
    with pytest.raises(IntegrityError):
        read_results(folder)


def test_the_protocol_names_the_development_rows(record, root):
    assert len(record.protocol["development"]) == 64
    assert "development" not in measure(root, "answers").protocol
    other = measure(root, "answer_temperature", dev="test.jsonl")
    assert other.protocol["development"] != record.protocol["development"]


def test_the_score_of_a_choice_is_part_of_its_settings(root):
    summed, mean = measure(root, "answers"), measure(root, "answers", choice_score="mean")
    assert value(summed, "answer_nll") != value(mean, "answer_nll")
    assert [info.settings for info in summed.infos] != [info.settings for info in mean.infos]


@pytest.mark.parametrize("metric", ["answer_temperature", "token_temperature"])
def test_without_development_rows_a_temperature_is_refused(root, metric):
    with pytest.raises(UsageError, match="needs development rows") as caught:
        measure(root, metric, dev=None)
    assert "data.dev=FILE" in caught.value.fix
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "changes, what",
    [
        ({"answer": "grey"}, 'answer "grey" is not among'),
        ({"choices": []}, "at least two"),
        ({"choices": ["red", "red"]}, "twice"),
        ({"choices": ["é", "ü"], "answer": "é"}, "same tokens"),
    ],
)
def test_rows_that_cannot_be_used_are_named(root, changes, what):
    rows(root / "bad.jsonl", 3, **changes)
    with pytest.raises(InputError, match=what) as caught:
        measure(root, "answers", data="bad.jsonl")
    assert caught.value.where == "bad.jsonl line 1"
    assert caught.value.exit_code == 3


def test_rows_without_choices_are_named(root):
    tiny.rows(root / "plain.jsonl", 3)
    with pytest.raises(InputError, match='"choices" is missing') as caught:
        measure(root, "answers", data="plain.jsonl")
    assert caught.value.exit_code == 3


def test_one_class_carries_a_note(root):
    rows(root / "one.jsonl", 5, answer="red")
    record = measure(root, "answers", data="one.jsonl")
    assert any("same in every row" in note for note in record.notes)


def test_logits_that_are_no_numbers_are_one_line(root, monkeypatch):
    monkeypatch.setattr("kdcli.generation.scoring.LogProbScorer.logp", lambda *_: [float("nan")] * 3)
    with pytest.raises(NumericsError, match="row 0") as caught:
        measure(root, "answers")
    assert caught.value.exit_code == 7


def test_a_study_leaves_temperatures_out_where_it_measures_development_rows(root):
    config = EvalConfig(
        model=str(root / "student"),
        data=DataConfig(eval=str(root / "test.jsonl"), dev=str(root / "dev.jsonl")),
        hardware=HardwareConfig(device="cpu"),
        evaluation=EvalSettings(metrics=("answers", "answer_temperature"), split="dev"),
    )
    heard = study.Heard()
    record = evaluate_run(config, heard)
    assert "answer_temperature" not in record.estimates
    assert any("answer_temperature left out" in note for note in record.notes)
