"""Protocols by name: what they set, what wins over them, and their hash."""

import re
from pathlib import Path
from typing import Any

import pytest

from kdcli.config.presets import of_protocol, protocol_names
from kdcli.config.resolve import iter_settings, resolve, to_yaml
from kdcli.config.schema import CompareConfig, DistillConfig, EvalConfig
from kdcli.errors import InputError, UsageError
from kdcli.evaluation.protocol import Protocol, differing_settings, protocol_of

FIELDS = of_protocol(iter_settings(EvalConfig))
OTHER: dict[str, Any] = {
    "data.template": "chat",
    "evaluation.choice_score": "mean",
    "evaluation.rouge_tokenizer": "char",
    "evaluation.rouge_stemmer": "none",
    "evaluation.length_unit": "words",
    "evaluation.generation.temperature": "0.7",
    "evaluation.generation.top_p": "0.9",
}
"""Another value where a number that is no default will not do."""


def settled(**flags: str) -> EvalConfig:
    return resolve(EvalConfig, flags=flags)


@pytest.mark.parametrize(("name", "label"), [("minillm", "minillm-64b32ae5"), ("greedy", "greedy-d9704fb5")])
def test_a_named_protocol_keeps_the_hash_that_published_tables_carry(name, label):
    assert protocol_of(settled(protocol=name)).label == label


def test_the_page_on_protocols_shows_the_hash_of_today():
    page = (Path(__file__).parents[2] / "docs/evaluation/protocols.md").read_text(encoding="utf-8")
    assert set(re.findall(r"minillm-[0-9a-f]{8}", page)) == {protocol_of(settled(protocol="minillm")).label}


def test_minillm_is_what_the_authors_scripts_do():
    config = settled(protocol="minillm")
    assert (config.data.template, config.data.max_prompt_length, config.data.max_length) == ("alpaca", 256, 512)
    generation = config.evaluation.generation
    assert (generation.temperature, generation.top_p, generation.seeds) == (1.0, 1.0, (10, 20, 30, 40, 50))
    assert generation.max_new_tokens == 256
    assert (config.evaluation.rouge_tokenizer, config.evaluation.rouge_stemmer) == ("words", "porter")
    assert protocol_of(config).name == "minillm"


def test_greedy_answers_once_at_temperature_0():
    generation = settled(protocol="greedy").evaluation.generation
    assert (generation.temperature, len(generation.seeds)) == (0.0, 1)


def test_hashes_are_stable_and_differ():
    hashes = {name: protocol_of(settled(protocol=name)).hash for name in protocol_names()}
    assert len(set(hashes.values())) == len(hashes)
    assert hashes == {name: protocol_of(settled(protocol=name)).hash for name in protocol_names()}


@pytest.mark.parametrize("path", FIELDS)
def test_changing_any_field_changes_the_hash_and_names_it(path):
    plain = protocol_of(settled(protocol="minillm"))
    changed = protocol_of(resolve(EvalConfig, flags={"protocol": "minillm"}, sets=[f"{path}={OTHER.get(path, '97')}"]))
    assert changed.hash != plain.hash
    assert [name for name, _, _ in differing_settings(plain.record(), changed.record())] == [path]


@pytest.mark.parametrize(
    "change", ["evaluation.metrics=rougeL", "evaluation.generation.batch_tokens=99", "data.eval_limit=3"]
)
def test_what_changes_no_number_changes_no_hash(change):
    config = resolve(EvalConfig, flags={"protocol": "minillm"}, sets=[change])
    assert protocol_of(config).label == protocol_of(settled(protocol="minillm")).label


def test_a_flag_wins_and_leaves_a_star():
    config = settled(protocol="minillm", max_new_tokens="32")
    assert config.evaluation.generation.max_new_tokens == 32
    assert config.evaluation.generation.seeds == (10, 20, 30, 40, 50)
    assert protocol_of(config).name == "minillm*"


def test_a_flag_of_the_same_value_leaves_none():
    config = settled(protocol="minillm", sampling_seeds="10,20,30,40,50")
    assert protocol_of(config).label == protocol_of(settled(protocol="minillm")).label


def test_a_set_beside_the_flag_wins_too():
    config = resolve(EvalConfig, flags={"protocol": "minillm"}, sets=["evaluation.generation.top_p=0.5"])
    assert config.evaluation.generation.top_p == 0.5


def test_the_flag_wins_over_a_variable_and_a_file_but_a_flag_over_the_variable(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("evaluation:\n  generation:\n    max_new_tokens: 7\n    batch_tokens: 99\n", encoding="utf-8")
    environ = {"KD_MAX_NEW_TOKENS": "8"}
    config = resolve(EvalConfig, file=file, environ=environ, flags={"protocol": "minillm"})
    assert (config.evaluation.generation.max_new_tokens, config.evaluation.generation.batch_tokens) == (256, 99)
    environ = {"KD_PROTOCOL": "minillm"}
    config = resolve(EvalConfig, file=file, environ=environ, flags={"max_new_tokens": "9"})
    assert config.evaluation.generation.max_new_tokens == 9
    assert config.evaluation.generation.seeds == (10, 20, 30, 40, 50)


@pytest.mark.parametrize("kind", [EvalConfig, DistillConfig, CompareConfig])
def test_written_settings_read_back_to_the_same_protocol(kind, tmp_path):
    config = resolve(kind, sets=["evaluation.protocol=minillm", "evaluation.generation.top_p=0.5"])
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config), encoding="utf-8")
    assert resolve(kind, file=file) == config


def test_a_file_of_ones_own(tmp_path):
    file = tmp_path / "lab.yaml"
    file.write_text("data:\n  template: plain\nevaluation:\n  generation:\n    temperature: 0.5\n", encoding="utf-8")
    config = settled(protocol=str(file))
    assert (config.data.template, config.evaluation.generation.temperature) == ("plain", 0.5)
    assert protocol_of(config).name == "lab"
    assert protocol_of(settled(protocol=str(file), template="chat")).name == "lab*"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "sets nothing"),
        ("evaluation:\n  metrics: rougeL\n", "evaluation.metrics is no part of a protocol"),
        ("evaluation:\n  protocol: minillm\n", "evaluation.protocol is no part of a protocol"),
        ("hardware:\n  device: cpu\n", "hardware.device is no part of a protocol"),
        ("evaluation:\n  generation:\n    top_p: 2.0\n", "evaluation.generation.top_p must be"),
        ("evaluation:\n  rouge_tokeniser: char\n", "is not a setting"),
    ],
)
def test_a_file_that_is_no_protocol_is_one_line(tmp_path, text, what):
    file = tmp_path / "bad.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=what) as caught:
        settled(protocol=str(file))
    assert caught.value.exit_code == 3
    assert str(file) in caught.value.where


def test_an_unknown_name_offers_the_nearest_and_a_missing_file_is_named():
    with pytest.raises(UsageError, match='unknown protocol "minilm"') as caught:
        settled(protocol="minilm")
    assert "did you mean minillm? use greedy or minillm" in caught.value.fix
    with pytest.raises(InputError, match="not found"):
        settled(protocol="nowhere/lab.yaml")


def test_a_setting_new_in_kd_leaves_older_hashes_and_comparisons_alone():
    now = protocol_of(settled(protocol="greedy"))
    older = Protocol("greedy", {path: value for path, value in now.settings.items() if path != "evaluation.bins"})
    assert older.hash == now.hash
    assert list(differing_settings(older.record(), now.record())) == []
    changed = protocol_of(resolve(EvalConfig, flags={"protocol": "greedy"}, sets=["evaluation.bins=7"]))
    assert list(differing_settings(older.record(), changed.record())) == [("evaluation.bins", 10, 7)]


def test_the_hash_is_of_names_and_values():
    one = Protocol("a", {"x": 1, "y": None})
    assert one.hash == Protocol("b", {"y": None, "x": 1}).hash
    assert one.hash != Protocol("a", {"x": None, "y": 1}).hash
    assert len(one.hash) == 8
