"""Recomputing activations, bf16 and compiling change time and memory, and no number beyond rounding."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import running
from kdcli.config.schema import LoraConfig
from kdcli.data.batching import collate
from kdcli.losses.build import build_objective
from kdcli.models.adapters import attach
from kdcli.models.head import trunk_of
from kdcli.teachers.base import LiveTeacher
from kdcli.training.step import DistillStep
from kdcli.training.trainer import train

SIZES = {
    "llama": {},
    "gpt2": {},
    "qwen2": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
              "num_key_value_heads": 1, "max_position_embeddings": 128},
    "opt": {"hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "max_position_embeddings": 128},
    "gpt_neox": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
                 "max_position_embeddings": 128},
    "gemma2": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
               "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 128},
}  # fmt: skip


def student(family, lora):
    model = running.model("student", seed=1, family=family, **SIZES[family])
    if not lora:
        return model
    wrapped = attach(model.model, LoraConfig(rank=2, dropout=0.2), seed=3, name="base")
    with torch.no_grad():
        for name, parameter in model.model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.05)
    return replace(model, adapter=wrapped)


def gradients(family, *, lora=False, checkpointing=False, objective="fkl"):
    """Gradients of one micro-batch with dropout drawn from a seed, and how often the layers ran."""
    model = student(family, lora)
    runs = []
    blocks = next(part for part in trunk_of(model.model).modules() if isinstance(part, nn.ModuleList))
    inside = next(part for part in blocks[0].modules() if isinstance(part, nn.Linear | Conv1D))
    inside.register_forward_pre_hook(lambda module, given: runs.append(None))
    model.model.train()
    if checkpointing:
        model.model.gradient_checkpointing_enable({"use_reentrant": False})
    teacher = LiveTeacher(running.model("teacher", seed=2))
    step = DistillStep(model, teacher, build_objective(objective), vocab=running.VOCAB)
    torch.manual_seed(7)
    loss, _ = step(collate(running.dataset(4).examples, [0, 1, 2, 3], 0), 20)
    loss.backward()
    parameters = {**dict(model.model.named_parameters()), **dict(step.named_parameters())}
    found = {name: one.grad for name, one in parameters.items() if one.grad is not None}
    return found, len(runs)


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
@pytest.mark.parametrize("family", list(SIZES))
def test_recomputed_activations_give_the_same_gradients(family, lora):
    plain, once = gradients(family, lora=lora)
    again, twice = gradients(family, lora=lora, checkpointing=True)
    assert (once, twice) == (1, 2), "the layers run again in the backward pass, or nothing was saved"
    assert plain.keys() == again.keys()
    assert any(one.abs().max() > 0 for one in plain.values())
    for name, one in plain.items():
        torch.testing.assert_close(again[name], one, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
@pytest.mark.parametrize("objective", ["fkl+hidden:map=1-1", "fkl+attention:map=1-1"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_layers_that_are_matched_may_be_recomputed(family, objective, lora):
    plain, once = gradients(family, lora=lora, objective=objective)
    again, twice = gradients(family, lora=lora, objective=objective, checkpointing=True)
    without, _ = gradients(family, lora=lora)
    assert twice == once + 1, "the layers run again in the backward pass, or nothing was saved"
    assert plain.keys() == again.keys()
    for name, one in plain.items():
        torch.testing.assert_close(again[name], one, rtol=1e-6, atol=1e-6)
    assert any(not torch.allclose(plain[name], one, atol=1e-5) for name, one in without.items()), "layers were matched"


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
def test_training_is_the_same_with_recomputed_activations(tmp_path, lora):
    runs = [
        running.training(tmp_path / str(on), student=student("llama", lora), gradient_checkpointing=on, max_steps=6)
        for on in (False, True)
    ]
    for one in runs:
        train(one)
    for name, value in running.weights(runs[0]).items():
        torch.testing.assert_close(running.weights(runs[1])[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lora, checkpointing", [(False, False), (True, True)], ids=["whole", "lora-recomputed"])
def test_bf16_learns_and_its_parameters_stay_fp32(tmp_path, lora, checkpointing):
    def losses(autocast, name):
        seen = []
        one = running.training(
            tmp_path / name, student=student("llama", lora), max_steps=12, gradient_checkpointing=checkpointing,
            report=lambda event: seen.append(event.values["loss"]) if event.kind == "progress" else None,
        )  # fmt: skip
        one = replace(one, device=replace(one.device, autocast=autocast))
        train(one)
        assert {value.dtype for value in one.student.model.parameters()} == {torch.float32}
        return torch.tensor(seen)

    half, full = losses(torch.bfloat16, "half"), losses(None, "full")
    assert half[-4:].mean() < 0.95 * half[:4].mean()
    torch.testing.assert_close(half, full, rtol=0.05, atol=0.02)
    assert not torch.equal(half, full)
