"""Every bad model folder ends in one line with its identifier, and runs nothing."""

import json
import os
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from kdcli.errors import InputError
from kdcli.models.load import load_model
from models.folders import copy, edit, header, write

CPU = torch.device("cpu")
CANARY = "import pathlib; pathlib.Path({!r}).write_text('ran')\nclass Evil:\n    pass\n"


def refuse(folder, code, *words):
    with pytest.raises(InputError) as caught:
        load_model(str(folder), device=CPU, role="teacher")
    message = str(caught.value)
    assert caught.value.code == code, message
    assert "\n" not in message
    assert caught.value.exit_code == 3
    assert caught.value.fix
    for word in words:
        assert word in message, message


def change_tensors(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


@pytest.fixture
def bad(good, tmp_path):
    return copy(good, tmp_path / "bad")


def test_no_folder_no_config_and_a_file(tmp_path, good, bad, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refuse("./T", "MOD-01", "no model at ./T (looked for T/config.json")
    refuse("org/nothing", "MOD-01", "org/nothing/config.json", "the hub was not asked because HF_HUB_OFFLINE is set")
    refuse("a b/c", "MOD-01", "no model at a b/c")
    refuse(good / "config.json", "MOD-01", "is a file")
    (bad / "config.json").unlink()
    refuse(bad, "MOD-01", "looked for", "config.json")
    (tmp_path / "run").mkdir()
    copy(good, tmp_path / "run" / "model")
    refuse("run", "MOD-01", "Fix: use run/model")


@pytest.mark.parametrize(
    "text,word",
    [
        ('{\n "a": }', "line 2"),
        ("[]", "object"),
        ("[" * 100_000, "JSON"),
        ('{"a": ' * 900 + "1" + "}" * 900, "nested"),
        ("\xff", "UTF-8"),
    ],
)
def test_broken_config(bad, text, word):
    (bad / "config.json").write_bytes(text.encode("latin-1"))
    refuse(bad, "MOD-02", "config.json", word)


def test_code_in_the_folder_is_never_run(bad, tmp_path):
    canary = tmp_path / "canary"
    for name in ("modeling_evil.py", "configuration_evil.py", "tokenization_evil.py", "evil.py"):
        (bad / name).write_text(CANARY.format(str(canary)))
    (bad / "custom_generate").mkdir()
    (bad / "custom_generate" / "generate.py").write_text(CANARY.format(str(canary)))
    auto_map = {
        "AutoConfig": "configuration_evil.Evil",
        "AutoModelForCausalLM": "modeling_evil.Evil",
        "AutoTokenizer": ["tokenization_evil.Evil", "tokenization_evil.Evil"],
    }
    edit(bad / "config.json", auto_map=auto_map)
    edit(bad / "tokenizer_config.json", auto_map=auto_map, tokenizer_class="PreTrainedTokenizerFast")
    loaded = load_model(str(bad), device=CPU, role="teacher")
    assert "auto_map ignored" in loaded.notes[0]
    edit(bad / "tokenizer_config.json", tokenizer_class="EvilTokenizer")
    refuse(bad, "TOK-11", "EvilTokenizer")
    edit(bad / "config.json", model_type="evil")
    refuse(bad, "MOD-04", '"evil"', "never run")
    assert not canary.exists()


@pytest.mark.parametrize(
    "key,value",
    [
        ("attn_implementation", "org/repo"),
        ("_attn_implementation_internal", "org/repo"),
        ("experts_implementation", "org/repo"),
        ("transformers_weights", "../../secret.bin"),
        ("to_dict", "shadow"),
        ("__class__", "shadow"),
        ("distributed_config", {"tp_size": 2}),
        ("fusion_config", {"patch_embeddings": True}),
        ("num_labels", 10**9),
    ],
)
def test_keys_that_steer_loading_are_ignored(bad, key, value):
    edit(bad / "config.json", **{key: value})
    loaded = load_model(str(bad), device=CPU, role="teacher")
    assert loaded.model.config._attn_implementation == "sdpa"
    assert key in loaded.notes[0]


def test_pickled_weights_are_not_read(bad, tmp_path):
    canary = tmp_path / "canary"

    class Exploit:
        def __reduce__(self):
            return os.system, (f"touch {canary}",)

    (bad / "model.safetensors").unlink()
    refuse(bad, "MOD-07", "looked for model.safetensors")
    (bad / "pytorch_model.bin").write_bytes(pickle.dumps(Exploit()))
    refuse(bad, "MOD-07", "pytorch_model.bin", "never read")
    assert not canary.exists()


@pytest.mark.parametrize("keep", [0, 7, 40, -1, -100])
def test_truncated_weights(bad, keep):
    path = bad / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    refuse(bad, "MOD-08", "damaged")


def test_headers_that_lie(bad):
    path = bad / "model.safetensors"
    table, body = header(path)
    first = next(name for name in table if name != "__metadata__")
    twice = json.dumps(table)[:-1] + f", {json.dumps(first)}: {json.dumps(table[first])}}}"
    write(path, twice, body)
    refuse(bad, "MOD-21", first)
    for entry, code in [
        ({**table[first], "shape": [10**12, 10**12]}, "MOD-08"),
        ({**table[first], "shape": [-1, -8]}, "MOD-08"),
        ({**table[first], "shape": "x"}, "MOD-08"),
        ({**table[first], "dtype": "F4_E2M1"}, "MOD-16"),
        ({**table[first], "dtype": ["F32"]}, "MOD-16"),
        ({**table[first], "data_offsets": [0, 4]}, "MOD-08"),
        ({"dtype": "F32"}, "MOD-08"),
        (None, "MOD-08"),
    ]:
        write(path, json.dumps({**table, first: entry}), body)
        refuse(bad, code)
    write(path, "[" * 50_000, body)
    refuse(bad, "MOD-08")
    path.write_bytes(b"\xff" * 64)
    refuse(bad, "MOD-08")


def test_not_finite_weights(bad):
    change_tensors(bad, lambda tensors: tensors["model.embed_tokens.weight"][3].fill_(float("nan")))
    refuse(bad, "MOD-09", "model.embed_tokens.weight has 16 NaN")
    change_tensors(bad, lambda tensors: tensors["model.embed_tokens.weight"][3].fill_(float("-inf")))
    refuse(bad, "MOD-09", "16 Inf")


def test_missing_and_extra_tensors(bad):
    name = "model.layers.1.self_attn.q_proj.weight"
    change_tensors(bad, lambda tensors: tensors.update({"extra.weight": tensors.pop(name)}))
    refuse(bad, "MOD-10", "1 tensor missing", name)
    change_tensors(bad, lambda tensors: tensors.update({name: tensors["extra.weight"].clone()}))
    refuse(bad, "MOD-11", "1 tensor in the weights", "extra.weight")


@pytest.mark.parametrize(
    "changes", [{"vocab_size": 48}, {"vocab_size": 10**8}, {"hidden_size": 24}, {"intermediate_size": 10**9}]
)
def test_shapes_that_do_not_fit(bad, changes):
    edit(bad / "config.json", **changes)
    refuse(bad, "MOD-12", "config.json asks for")


def test_more_layers_than_weights(bad):
    edit(bad / "config.json", num_hidden_layers=1_000)
    refuse(bad, "MOD-13", "asks for 1,000 layers, the weights hold 2")
    edit(bad / "config.json", num_hidden_layers=10**7)
    refuse(bad, "MOD-13", "asks for 10,000,000 layers, the weights hold 2")


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": -1},
        {"vocab_size": 10**12},
        {"hidden_size": "16"},
        {"num_hidden_layers": 0},
        {"num_attention_heads": True},
        {"num_attention_heads": 3},
        {"num_key_value_heads": 10**6},
        {"max_position_embeddings": 1.5},
        {"rms_norm_eps": "x"},
        {"hidden_act": "no_such_activation"},
    ],
)
def test_sizes_that_are_no_sizes(bad, changes):
    edit(bad / "config.json", **changes)
    refuse(bad, "MOD-14", "config.json")


@pytest.mark.parametrize("shard", ["../../etc/passwd", "/etc/passwd", "..", "sub/x.safetensors", "x.bin", "", 7, None])
def test_index_that_leaves_the_folder(bad, shard):
    (bad / "model.safetensors").unlink()
    (bad / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    refuse(bad, "MOD-15", "shard")


def test_shards(bad):
    whole = load_file(bad / "model.safetensors")
    (bad / "model.safetensors").unlink()
    names = sorted(whole)
    halves = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({name: whole[name] for name in part}, bad / file, {"format": "pt"})
    weight_map = {name: file for file, part in halves.items() for name in part}
    index = bad / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    load_model(str(bad), device=CPU, role="teacher")
    index.write_text(json.dumps({"weight_map": {**weight_map, "gone": "model-1.safetensors"}}))
    refuse(bad, "MOD-10", "gone")
    save_file(whole, bad / "model-2.safetensors", {"format": "pt"})
    index.write_text(json.dumps({"weight_map": weight_map}))
    refuse(bad, "MOD-21", "another shard")
    (bad / "model-2.safetensors").unlink()
    refuse(bad, "MOD-15", "model-2.safetensors is missing")
    index.write_text("{}")
    refuse(bad, "MOD-15", "weight_map")


@pytest.mark.parametrize("settings", [{"quant_method": "evil"}, {"quant_method": "bitnet"}, "evil"])
def test_quantised_folders(bad, settings):
    edit(bad / "config.json", quantization_config=settings)
    refuse(bad, "MOD-16", "quantised")


@pytest.mark.parametrize(
    "changes,word",
    [
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, "got T5ForConditionalGeneration"),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "got BertForMaskedLM"),
        ({"model_type": "bart", "is_encoder_decoder": True}, "needs a causal LM"),
        ({"model_type": "vit"}, "needs a causal LM"),
        ({"model_type": "lama"}, "did you mean llama?"),
        ({"model_type": ...}, "model_type is missing"),
        ({"model_type": "\x1b[31mred"}, "\\x1b[31mred"),
    ],
)
def test_other_kinds_of_models(bad, changes, word):
    edit(bad / "config.json", **changes)
    refuse(bad, "MOD-17", word)


def test_adapters_are_refused_by_name(bad):
    (bad / "adapter_config.json").write_text(json.dumps({"peft_type": "PROMPT_TUNING"}))
    refuse(bad, "MOD-23", "PROMPT_TUNING")


def test_huge_tables_are_refused_before_memory_is_taken(tmp_path):
    folder = tiny.folder(tmp_path / "gptj", "gptj", n_embd=16, n_layer=1, n_head=2, rotary_dim=8)
    edit(folder / "config.json", n_positions=10**9)
    refuse(folder, "MOD-14")


def test_broken_generation_config(bad):
    (bad / "generation_config.json").write_text("{")
    refuse(bad, "MOD-02", "generation_config.json")
    shutil.copy(bad / "tokenizer_config.json", bad / "generation_config.json")
    load_model(str(bad), device=CPU, role="teacher")


MUTANTS = (None, -1, 0, 3, 10**9, 10**15, 1e300, True, "x", [], {}, "../x")


def test_whatever_a_value_becomes_the_error_is_one_line(bad):
    """Every key of every JSON file is replaced once, each time by another value."""
    outcomes = set()
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        original = (bad / name).read_text(encoding="utf-8")
        for index, key in enumerate(json.loads(original)):
            edit(bad / name, **{key: MUTANTS[index % len(MUTANTS)]})
            outcomes.add(outcome(bad))
            (bad / name).write_text(original, encoding="utf-8")
    assert {"loaded", "MOD-14"} <= {text[6:12] if text != "loaded" else text for text in outcomes}
    assert not [text for text in outcomes if "\n" in text]


def outcome(folder):
    try:
        load_model(str(folder), device=CPU, role="teacher")
    except InputError as error:
        return str(error)
    return "loaded"
