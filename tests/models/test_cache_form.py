"""The form of the key-value cache against what transformers keeps for real small models."""

import pytest
import torch
from transformers import AutoConfig, DynamicCache

import tiny
from kdcli.errors import InputError
from kdcli.models.cache_form import cache_form

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
FORMS = {
    "many heads": ("llama", {**SMALL, "num_key_value_heads": 4}),
    "grouped": ("llama", {**SMALL, "num_key_value_heads": 2}),
    "wide heads": ("llama", {**SMALL, "num_key_value_heads": 1, "head_dim": 8}),
    "gpt2": ("gpt2", {"n_embd": 16, "n_layer": 3, "n_head": 4}),
    "one head": ("gpt_bigcode", {"n_embd": 16, "n_layer": 2, "n_head": 4, "multi_query": True, "n_inner": 32}),
    "falcon, one head": ("falcon", {**SMALL, "multi_query": True, "new_decoder_architecture": False}),
    "neox": ("gpt_neox", SMALL),
}
SLIDING = {
    "all slide": ("mistral", {**SMALL, "num_key_value_heads": 2, "sliding_window": 6}),
    "some slide": (
        "gemma2",
        {**SMALL, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 6, "num_hidden_layers": 4},
    ),
    "window switched off": ("qwen2", {**SMALL, "num_key_value_heads": 2, "use_sliding_window": False}),
}


def kept(model, length):
    """Count the numbers in the cache after one sequence."""
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(torch.full((1, length), 5), past_key_values=cache, use_cache=True)
    return [layer.keys.numel() + layer.values.numel() for layer in cache.layers]


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("length", [1, 11])
def test_elements_are_those_of_the_real_cache(name, length):
    family, sizes = FORMS[name]
    model = tiny.model(family, **sizes)
    assert cache_form(model.config, name).elements(length) == sum(kept(model, length))


@pytest.mark.parametrize("name", SLIDING)
def test_windows_bound_what_is_kept(name):
    family, sizes = SLIDING[name]
    model = tiny.model(family, **sizes)
    form = cache_form(model.config, name)
    assert form.elements(4) == sum(kept(model, 4))
    for window, real in zip(form.windows, kept(model, 20), strict=True):
        # transformers keeps one token less: the newest one completes the window.
        expected = 20 if window is None else window - 1
        assert real == form.numbers * expected
    assert form.elements(20) == form.numbers * sum(20 if window is None else window for window in form.windows)


@pytest.mark.parametrize("name", [*FORMS, *SLIDING])
def test_pairs_against_a_mask(name):
    family, sizes = {**FORMS, **SLIDING}[name]
    form, length = cache_form(tiny.model(family, **sizes).config, name), 9
    counted = sum(
        sum(1 for query in range(length) for key in range(query + 1) if window is None or query - key < window)
        for window in form.windows
    )
    assert form.pairs(length) == counted


def test_falcon_names_its_heads_in_its_own_way():
    # transformers keeps every key once per query head of its group, servers keep it once.
    model = tiny.model("falcon", **SMALL, num_kv_heads=2, new_decoder_architecture=True)
    assert cache_form(model.config, "falcon").elements(1) == 2 * 2 * 2 * 4


def test_latent_attention_keeps_one_vector():
    config = AutoConfig.for_model("deepseek_v3")
    assert cache_form(config, "v3").elements(1) == 61 * (512 + 64)


def test_layers_with_a_fixed_state_are_counted_apart():
    config = AutoConfig.for_model("qwen3_next")
    form = cache_form(config, "next")
    assert (len(form.windows), form.fixed) == (12, 36)


def test_a_model_without_attention_is_refused():
    with pytest.raises(InputError, match="EST-01"):
        cache_form(AutoConfig.for_model("mamba"), "m")
