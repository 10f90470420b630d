"""What a model's generation config says of penalties and lengths is applied in no way of writing."""

import json
from dataclasses import replace

import pytest
import torch

import chains
import running
import tiny
from chains import END, START, A, B, C
from kdcli.config.schema import DataConfig, EvalConfig, EvalSettings, GenerationConfig, HardwareConfig
from kdcli.end_tokens import EndTokens
from kdcli.evaluation.evaluate import evaluate_run
from kdcli.generation import generate
from kdcli.generation.beam import beam_answers
from kdcli.loading.session import Session
from kdcli.models.plain import ignored_generation_settings, plain_generation
from models.folders import edit

OTHERS = {"repetition_penalty": 9.0, "no_repeat_ngram_size": 1, "min_new_tokens": 6}
PROMPT = [1, 5, 6]


@pytest.fixture
def pair():
    made = running.model("teacher", seed=2), running.model("teacher", seed=2)
    for name, value in OTHERS.items():
        setattr(made[1].model.generation_config, name, value)
    return made


def greedy(model):
    return generate(model, [PROMPT], GenerationConfig(max_new_tokens=12, temperature=0.0), seed=0)


def sampled(model):
    return generate(model, [PROMPT], GenerationConfig(max_new_tokens=12), seed=3)


def beam(model):
    return beam_answers(model, PROMPT, width=3, best=2, most=12, ids=running.VOCAB)


def by_transformers(model):
    with plain_generation(model):
        found = model.model.generate(torch.tensor([PROMPT]), do_sample=False, max_new_tokens=12)
    return found.tolist()


@pytest.mark.parametrize("write", [greedy, sampled, beam, by_transformers])
def test_every_way_of_writing_passes_them_over(pair, write):
    plain, other = pair
    assert write(plain) == write(other)
    assert other.model.generation_config.repetition_penalty == 9.0, "the config is put back"


def test_transformers_stops_at_every_end_token_of_the_model():
    table = {START: {A: 1.0}, A: {B: 1.0}, B: {C: 1.0}, C: {A: 1.0}}
    model = replace(chains.chain(table), ends=EndTokens((END, C)))
    with plain_generation(model):
        found = model.model.generate(torch.tensor([[START]]), do_sample=False, max_new_tokens=12)
    assert found.tolist() == [[START, A, B, C]]


def test_beam_search_weighs_answers_by_their_probability_among_the_real_ids():
    """Padding holds nine tenths of what follows a; among the real ids the end is sure there."""
    table = {START: {A: 0.55, B: 0.45}, A: {END: 0.1, C: 0.9}, B: {END: 0.5, B: 0.5}}
    (best,) = beam_answers(chains.chain(table), [START], width=4, best=1, most=6, ids=C)
    assert best.ids == (A,)


def test_what_is_passed_over_is_named_in_a_note_and_in_the_settings_string(tmp_path):
    folder = tiny.folder(tmp_path / "model")
    edit(folder / "generation_config.json", **OTHERS, temperature=0.6, top_p=0.9, do_sample=True)
    facts = Session().inspect(str(folder))
    assert facts.passed_over == ("min_new_tokens", "no_repeat_ngram_size", "repetition_penalty")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    config = EvalConfig(
        model=str(folder), data=DataConfig(eval=str(tmp_path / "rows.jsonl")), hardware=HardwareConfig(device="cpu"),
        evaluation=EvalSettings(metrics=("rougeL",), generation=GenerationConfig(max_new_tokens=2, seeds=(0,))),
    )  # fmt: skip
    told = []
    (info,) = evaluate_run(config, told.append).infos
    assert "|max:2|processors:none|" in info.settings
    assert any("min_new_tokens, no_repeat_ngram_size, repetition_penalty of its" in event.message for event in told)


def test_names_of_the_librarys_settings_are_those_that_we_pass_over():
    known = tiny.model().generation_config.to_dict()
    assert {*OTHERS, "top_k", "bad_words_ids", "suppress_tokens", "min_p"} <= known.keys()
    config = tiny.model().generation_config
    assert ignored_generation_settings(config) == ()
