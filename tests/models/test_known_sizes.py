"""Parameters and KV cache in closed form, against the models that transformers builds from the same config.json."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from kdcli.models.cache_form import cache_form
from kdcli.models.known_sizes import known_sizes

SMALL = {"vocab_size": 51, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 3, "num_attention_heads": 4,
         "max_position_embeddings": 40}  # fmt: skip
GROUPED = {**SMALL, "num_key_value_heads": 2}
GPT2 = {"vocab_size": 51, "n_embd": 24, "n_layer": 3, "n_head": 4, "n_positions": 40}
MODELS = {
    "llama": ("llama", GROUPED),
    "llama, tied": ("llama", {**GROUPED, "tie_word_embeddings": True}),
    "llama, biases": ("llama", {**GROUPED, "attention_bias": True, "mlp_bias": True}),
    "llama, wide heads": ("llama", {**GROUPED, "head_dim": 10, "num_key_value_heads": 1}),
    "mistral": ("mistral", {**GROUPED, "sliding_window": 8}),
    "mistral, no window": ("mistral", {**GROUPED, "sliding_window": None}),
    "qwen2": ("qwen2", GROUPED),
    "qwen2, tied": ("qwen2", {**GROUPED, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", {**GROUPED, "head_dim": 10}),
    "qwen3, biases": ("qwen3", {**GROUPED, "head_dim": 10, "attention_bias": True, "tie_word_embeddings": True}),
    "gpt2": ("gpt2", GPT2),
    "gpt2, narrow": ("gpt2", {**GPT2, "n_inner": 20}),
    "gpt_neox": ("gpt_neox", SMALL),
    "gpt_neox, no bias": ("gpt_neox", {**SMALL, "attention_bias": False, "tie_word_embeddings": True}),
}


def written(family, sizes):
    """What transformers writes into config.json."""
    return json.loads(AutoConfig.for_model(family, **sizes).to_json_string())


def built(settings):
    """Parameters, numbers of the head, whether it is tied, and the form of the cache, of the model itself."""
    config = AutoConfig.for_model(**settings)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings().weight
    tied = head is model.get_input_embeddings().weight
    return sum(one.numel() for one in model.parameters()), head.numel(), tied, cache_form(config, "")


def counted(settings):
    found = known_sizes(settings)
    if found is None:
        return None
    config, counts = found
    return counts.parameters, counts.head, counts.tied, cache_form(config, "")


@pytest.mark.parametrize("name", MODELS)
def test_what_is_counted_is_what_is_built(name):
    settings = written(*MODELS[name])
    assert counted(settings) == built(settings)
    sizes, counts = known_sizes(settings)
    assert sizes.vocab_size == 51
    assert sizes.max_position_embeddings == 40
    assert counts.trunk == counts.parameters - counts.head * (1 if counts.tied else 2)


def lacking(name):
    settings = written(*MODELS[name])
    for key in settings:
        rest = {other: value for other, value in settings.items() if other != key}
        found = counted(rest)
        assert found is None or found == built(rest), key


@pytest.mark.parametrize("name", [*MODELS][::7])
def test_a_setting_that_is_missing_is_its_default_or_makes_the_model_unknown(name):
    lacking(name)


@pytest.mark.full
@pytest.mark.parametrize("name", MODELS)
def test_a_setting_that_is_missing_is_its_default_or_makes_any_model_unknown(name):
    lacking(name)


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "olmo2"}, {"model_type": None}, {"model_type": ["llama"]}, {"hidden_size": 0},
        {"hidden_size": "24"}, {"hidden_size": True}, {"hidden_size": 25}, {"num_key_value_heads": 3},
        {"vocab_size": 10**9}, {"tie_word_embeddings": "yes"}, {"quantization_config": {"quant_method": "gptq"}},
        {"num_local_experts": 4}, {"kd_left_out": {"attention": [1]}}, {"text_config": {}}, {"auto_map": {}},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_not_known_for_sure_is_not_counted(change):
    assert known_sizes(written("llama", GROUPED) | change) is None


@pytest.mark.parametrize("change", [{"use_sliding_window": True}, {"layer_types": ["sliding_attention"] * 3}], ids=str)
def test_windows_of_some_layers_are_not_counted(change):
    assert known_sizes(written("qwen2", GROUPED) | change) is None
