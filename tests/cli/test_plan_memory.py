"""``kd plan --gpu-memory`` plans for GPUs that are not here, with or without the models' weights."""

import json

import pytest

import tiny
from shell import kd

CHECKPOINTING = "--gradient-checkpointing"
SHAPE = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 24}
LINE = ["plan", "--teacher", "teacher", "--student", "student", "--data", "train.jsonl", "--loss", "akl"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    made = tmp_path_factory.mktemp("planned")
    for seed, name in enumerate(("teacher", "student")):
        folder = tiny.folder(made / name, seed=seed, **SHAPE)
        for path in folder.glob("*.safetensors*"):
            path.unlink()
    tiny.rows(made / "train.jsonl", 8)
    return made


def planned(home, *words, code=0):
    found = kd(*LINE, *words, "--json", folder=home)
    assert found.code == code, found.err
    return json.loads(found.out)


def test_processes_in_shards_take_less_of_each_gpu(home):
    ddp, fsdp2, zero3 = (
        planned(home, "--gpu-memory", "80GiB", "--gpus", "8", "--shard", shard) for shard in ("ddp", "fsdp2", "zero3")
    )
    assert ddp["cost"]["gpu_memory"] == 80 * 2**30
    assert fsdp2["cost"]["gpu_bytes"] < ddp["cost"]["gpu_bytes"]
    assert zero3["cost"]["gpu_bytes"] < ddp["cost"]["gpu_bytes"]
    fits = ddp["facts"]["memory per GPU"]
    assert "it fits" in fits["text"]
    assert fits["values"]["fits"] is True
    assert fits["values"]["bytes"] == ddp["cost"]["gpu_bytes"]
    assert any("holds no weights: planned from its config.json alone" in note for note in ddp["notes"])


def test_what_is_too_much_fits_with_the_flags_that_are_named(home):
    needed = planned(home, "--gpu-memory", "80GiB", "--gpus", "4")["cost"]["gpu_bytes"]
    small = ["--gpu-memory", f"{needed * 0.96 / 2**20:.0f}MiB", "--gpus", "4"]
    refused = planned(home, *small)
    assert "too much" in refused["facts"]["memory per GPU"]["text"]
    flags = refused["facts"]["to make it fit"]["values"]["flags"]
    again = planned(home, *small, *flags.split())
    assert again["facts"]["memory per GPU"]["values"]["fits"]
    assert again["cost"]["gpu_bytes"] == refused["facts"]["to make it fit"]["values"]["bytes"]


def test_a_plan_says_what_gradient_checkpointing_saves(home):
    (home / "long.jsonl").write_text((json.dumps({"prompt": "a", "completion": "b" * 100}) + "\n") * 64)
    long = ["--data", "long.jsonl", "--batch-size", "64", "--set", "train.micro_tokens=100000"]
    sizes = [planned(home, *long, "--gpu-memory", "9GiB", *more)["cost"]["gpu_bytes"] for more in ([], [CHECKPOINTING])]
    memory = f"{sum(sizes) / 2 / 2**20:.0f}MiB"
    with_it = planned(home, *long, "--gpu-memory", memory, CHECKPOINTING)["facts"]["memory per GPU"]
    assert with_it["text"].endswith(": too much")
    assert with_it["text"].count("it fits") == 1
    values = with_it["values"]
    assert (values["fits"], values["fits_without_gradient_checkpointing"]) == (True, False)
    assert [values["bytes_without_gradient_checkpointing"], values["bytes"]] == sizes


@pytest.mark.parametrize("size", ["much", "0", "80 parsecs", "-1GiB"])
def test_a_size_that_is_none_is_refused(home, size):
    found = kd(*LINE, "--gpu-memory", size, folder=home)
    assert found.code == 2
    assert "error[CLI-06]" in found.err
    assert "80GiB" in found.err


def test_training_needs_the_weights(home):
    found = kd("distill", *LINE[1:], "-o", "run", "--device", "cpu", folder=home)
    assert found.code == 3
    assert not (home / "run" / "model").exists()
