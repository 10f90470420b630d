"""What a model takes on a device, against numbers worked out by hand from published configs."""

import json

import pytest
import torch

import shell
import tiny
from kdcli.cli.quantities import amount, count
from kdcli.diagnostics.deployment import Device, estimate_deployment
from kdcli.errors import InputError, UsageError
from kdcli.models.load import load_model

LLAMA_7B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000, "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}  # fmt: skip
MISTRAL_7B = {
    "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 32000,
    "sliding_window": 4096, "tie_word_embeddings": False,
}  # fmt: skip
GIB = 2**30


def write(path, config):
    path.write_text(json.dumps(config))
    return str(path)


def needs(path, kind, device, **asked):
    found = estimate_deployment(path, device, **asked)
    return next(one for one in found.needs if one.weights == kind)


def test_llama_7b_by_hand(tmp_path):
    path = write(tmp_path / "config.json", LLAMA_7B)
    device = Device(memory=24 * GIB, bandwidth=100e9, flops=10e12)
    found = estimate_deployment(path, device, context=4096, batch=2)
    assert found.parameters == 6_738_415_616  # the published count
    bf16 = next(one for one in found.needs if one.weights == "bf16")
    assert bf16.weight_bytes == 13_476_831_232
    assert bf16.cache_bytes == 2 * 32 * 32 * 128 * 4096 * 2 == 2 * GIB  # half a MiB per token
    assert bf16.total_bytes == 13_476_831_232 + 2 * (2 * GIB + 4 * 32000)
    assert bf16.largest_batch == 5  # (25,769,803,776 - 13,476,831,232) / 2,147,611,648 = 5.72
    read = 6_738_415_616 - 32000 * 4096
    assert bf16.step_seconds == pytest.approx((2 * read + 2 * 2 * GIB) / 100e9)
    assert bf16.tokens_per_second == pytest.approx(2 / bf16.step_seconds)
    assert bf16.bound == "memory"
    trunk = 6_738_415_616 - 2 * 32000 * 4096
    attention = 4 * 32 * 128 * 32 * 4096 * 4097 / 2
    assert bf16.prompt_seconds == pytest.approx((2 * trunk * 4096 + 2 * 32000 * 4096 + attention) / 10e12)
    assert bf16.prompt_seconds == pytest.approx(5.75, abs=0.01)
    sizes = {one.weights: one.weight_bytes for one in found.needs}
    assert sizes == {"fp32": 26953662464, "bf16": 13476831232, "int8": 6738415616, "int4": 3369207808}


def test_grouped_heads_and_a_window_keep_less(tmp_path):
    path = write(tmp_path / "mistral.json", MISTRAL_7B)
    short, long = (needs(path, "int4", Device(), context=size) for size in (4096, 32768))
    assert short.cache_bytes == 2 * 32 * 8 * 128 * 4096 * 2 == GIB // 2
    assert long.cache_bytes == short.cache_bytes


def test_what_is_not_known_is_not_made_up(tmp_path):
    found = needs(write(tmp_path / "c.json", LLAMA_7B), "int8", Device(), context=16)
    assert (found.largest_batch, found.step_seconds, found.tokens_per_second) == (None, None, None)
    assert (found.prompt_seconds, found.bound) == (None, None)


def test_many_requests_are_bound_by_arithmetic(tmp_path):
    path = write(tmp_path / "c.json", LLAMA_7B)
    device = Device(bandwidth=1e12, flops=1e12)
    one, many = (needs(path, "int4", device, context=1, batch=batch) for batch in (1, 64))
    assert many.bound == "arithmetic"
    assert many.step_seconds == pytest.approx(64 * one.step_seconds, rel=0.01)


def test_a_model_that_does_not_fit(tmp_path):
    found = needs(write(tmp_path / "c.json", LLAMA_7B), "bf16", Device(memory=8 * GIB), context=128)
    assert found.largest_batch == 0


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_parameters_are_those_of_the_loaded_model(tmp_path, family):
    folder = tiny.folder(tmp_path / "model", family)
    model = load_model(str(folder), device=torch.device("cpu"), role="teacher").model
    found = estimate_deployment(str(folder), Device(), context=8)
    assert found.parameters == sum(one.numel() for one in model.parameters())


def test_no_weights_are_needed(tmp_path):
    folder = tiny.folder(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    assert estimate_deployment(str(folder), Device(), context=8).parameters > 0


def test_what_the_formulas_leave_out_is_said(tmp_path):
    found = estimate_deployment(write(tmp_path / "c.json", LLAMA_7B), Device(), context=5000)
    assert found.notes == ("the model's positions end at 4,096 tokens",)


def test_the_command(tmp_path):
    path = write(tmp_path / "c.json", LLAMA_7B)
    said = shell.kd("estimate", path, "--context", "4096", "--memory", "24GiB", "--bandwidth", "50GB/s", "--json")
    assert said.code == 0
    assert json.loads(said.out)["needs"][1]["largest_batch"] == 5
    table = shell.kd("estimate", path, "--memory", "8GiB", "--bandwidth", "50GB/s", "--flops", "2TFLOPS").out
    assert "none" in table
    assert "memory" in table
    assert all(len(line.rstrip()) <= 100 for line in table.splitlines())


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((), "CLI-20"),
        (("c.json", "--context", "0"), "--context"),
        (("c.json", "--batch", "x"), "--batch"),
        (("c.json", "--memory", "8 parsecs"), "--memory"),
        (("c.json", "--bandwidth", "0GB/s"), "--bandwidth"),
        (("c.json", "--flops", "1GiB"), "--flops"),
    ],
)
def test_mistakes_are_one_line(tmp_path, arguments, line):
    write(tmp_path / "c.json", LLAMA_7B)
    said = shell.kd("estimate", *arguments, folder=tmp_path)
    assert said.code == 2
    assert len(said.error_lines) == 1
    assert line in said.error_lines[0]


@pytest.mark.parametrize(
    "config", [{"model_type": "mamba"}, {"model_type": "nothing"}, {**LLAMA_7B, "hidden_size": -1}, {}]
)
def test_configs_that_cannot_be_used(tmp_path, config):
    with pytest.raises(InputError):
        estimate_deployment(write(tmp_path / "c.json", config), Device(), context=8)
    with pytest.raises(InputError, match="not found"):
        estimate_deployment(str(tmp_path / "none.json"), Device(), context=8)


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("8GiB", "bytes", 8 * 2**30),
        ("1.5 kb", "bytes", 1500.0),
        ("1e9", "bytes", 1e9),
        ("50GB/s", "bytes per second", 50e9),
        ("50 GiB/s", "bytes per second", 50 * 2**30),
        ("2TFLOPS", "operations per second", 2e12),
        ("3.5Gflop/s", "operations per second", 3.5e9),
    ],
)
def test_amounts(text, unit, value):
    assert amount(text, unit, "--x", "y") == value


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "8GB/s", "nan", "inf", "1e999GB", "8iB", "8 G x"])
def test_no_amounts(text):
    with pytest.raises(UsageError, match="CLI-06"):
        amount(text, "bytes", "--x", "y")


@pytest.mark.parametrize("text", ["", "1.5", "-3", "1e3", "9" * 30, "٣"])
def test_no_counts(text):
    with pytest.raises(UsageError):
        count(text, "--x")
