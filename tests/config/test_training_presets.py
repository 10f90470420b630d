"""Every preset is found by name, says where it comes from, and trains: on tiny models and on the demo's rows."""

import json
import math
import zlib
from pathlib import Path

import pytest

import study
from kdcli.config.presets import cards, config_path, describe, preset_names, preset_path
from kdcli.config.resolve import resolve
from kdcli.config.schema import DistillConfig
from kdcli.demo import demo as demo_parts
from kdcli.distill.run import distill
from kdcli.errors import UsageError
from kdcli.events import silent

SMALL = [
    "train.max_steps=3",
    "train.save_every=2",
    "train.batch_size=4",
    "train.warmup=0",
    "train.lr=1e-3",
    "data.limit=16",
]
SMALL += ["hardware.device=cpu", "evaluation.metrics=perplexity"]


@pytest.fixture(scope="module")
def tiny_parts(tmp_path_factory):
    parts = study.Parts(tmp_path_factory.mktemp("tiny"))
    return {"teacher": parts.teacher, "student": parts.student, "data.train": parts.train}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo")
    demo_parts.make_data(root)
    demo_parts.make_beginner(root / "teacher", root / "train.jsonl")
    student = "random:family=llama,layers=1,width=32,heads=2"
    return {"teacher": root / "teacher", "student": student, "data.train": root / "train.jsonl", "data.max_length": 48}


def trained(name, parts, folder, *more):
    if "\nstudent: " in preset_path(name).read_text(encoding="utf-8"):
        parts = {key: value for key, value in parts.items() if key != "student"}
    sets = [*SMALL, *more, *(f"{key}={value}" for key, value in parts.items()), f"output={folder}"]
    config = resolve(DistillConfig, file=preset_path(name), sets=sets)
    record = distill(config, silent)
    lines = [json.loads(line) for line in (record.folder / "metrics.jsonl").read_text().splitlines()]
    assert record.steps == len(lines) == 3
    assert all(math.isfinite(line["loss"]) and line["gradient_norm"] > 0 for line in lines)
    return config, lines


ANYBODY = [name for name in preset_names() if "agree=true" not in describe(name).objective]
"""Presets that train with any teacher; where it has to be right, a test of the preset's own has one that is."""


@pytest.mark.parametrize("name", ANYBODY)
def test_it_trains_tiny_models(name, tiny_parts, tmp_path):
    config, lines = trained(name, tiny_parts, tmp_path / "run")
    assert config.loss == describe(name).objective
    if "@student" in config.loss or "@rollout" in config.loss:
        assert any("generated_tokens" in line for line in lines)


@pytest.mark.parametrize("name", ANYBODY)
def test_it_trains_on_the_rows_of_the_demo(name, demo, tmp_path):
    trained(name, demo, tmp_path / "run")


def test_sparse_llama_trains_half_of_the_weights_and_ends_with_its_zeros(tiny_parts, tmp_path):
    config, lines = trained("sparse-llama", tiny_parts, tmp_path / "run")
    assert config.train.keep_zeros
    assert config.student == "cut:sparse=0.5,method=sparsegpt,rows=128"
    for line in lines:
        assert line["loss"] == pytest.approx(line["ce"] + line["fkl"] + line["hidden"], rel=1e-5)
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["zeros"] == pytest.approx(0.5, abs=1e-3)
    file = tmp_path / "run" / "model" / "model.safetensors"
    assert status["compressed_bytes"] == len(zlib.compress(file.read_bytes(), 6))


def test_minillm_takes_its_corpus_and_the_published_variant(tiny_parts, tmp_path):
    published = "route:rollout=(minillm:variant=lmops),corpus=(0.5*ce+0.5*soft_ce)@rollout:corpus=4"
    corpus = f"data.corpus={tiny_parts['data.train']}"
    _, lines = trained("minillm", tiny_parts, tmp_path / "run", f"loss={published}", corpus)
    for line in lines:
        assert {
            "rollout",
            "corpus",
            "rollout.rho",
            "rollout.k3",
            "rollout.length",
            "rollout.sequence_kl",
        } <= line.keys()
        assert line["loss"] == pytest.approx(line["rollout"] + line["corpus"])


@pytest.mark.parametrize("name", preset_names())
def test_its_header_states_paper_section_and_what_the_published_code_does(name):
    text = preset_path(name).read_text(encoding="utf-8")
    header = "".join(line[1:] for line in text.splitlines() if line.startswith("#"))
    assert "arXiv" in header
    assert "section" in header or "algorithm" in header
    assert "published" in header
    assert max(map(len, text.splitlines())) <= 120


def test_a_file_of_that_name_wins_over_the_preset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config_path("gkd") == preset_path("gkd")
    Path("gkd").write_text("loss: ce\n")
    assert config_path("gkd") == Path("gkd")
    assert config_path("no/such.yaml") == Path("no/such.yaml")


@pytest.mark.parametrize("typed, near", [("gdk", "gkd"), ("mini_lm", "minillm")])
def test_unknown_names_offer_the_nearest(typed, near):
    with pytest.raises(UsageError, match=f"did you mean {near}") as caught:
        config_path(typed)
    assert "neither a file nor a preset" in str(caught.value)


def test_case_and_underscores_do_not_count():
    assert preset_path("MiniLLM") == preset_path("minillm")


def test_cards_hold_the_whole_file():
    assert [card.name for card in cards()] == preset_names()
    for card in cards():
        assert card.text == preset_path(card.name).read_text(encoding="utf-8")
        assert card.objective in card.text
        assert card.summary in card.text
