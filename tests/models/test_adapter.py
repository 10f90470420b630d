"""A LoRA adapter trains alone, is checkpointed alone, and merges into the weights when a student is saved."""

import json
import signal
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import running
import tiny
from kdcli.config.schema import LoraConfig
from kdcli.data.batching import collate
from kdcli.errors import InputError, InterruptedRunError, UsageError
from kdcli.losses.build import build_objective
from kdcli.models.adapters import attach, check_adapter, merged, save_adapter
from kdcli.models.kernels import OneDNNConv1D, OneDNNLinear
from kdcli.models.load import load_model, save_student
from kdcli.teachers.base import LiveTeacher
from kdcli.training import fused_loss
from kdcli.training.step import DistillStep
from kdcli.training.trainer import train

FAMILIES = ["llama", "gpt2"]
CPU = torch.device("cpu")


def student(family="llama", seed=1, **settings):
    """A student with an adapter that already changes its numbers."""
    model = running.model("student", seed=seed, family=family)
    model = replace(model, adapter=attach(model.model, LoraConfig(rank=4, **settings), seed=3, name="base"))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def adapted(model) -> list[tuple[str, Any]]:
    """The layers that carry an adapter."""
    return [(name, part) for name, part in model.named_modules() if hasattr(part, "lora_A")]


def step_of(model, spec="fkl"):
    teacher = LiveTeacher(running.model("teacher", seed=2))
    return DistillStep(model, teacher, build_objective(spec), vocab=running.VOCAB)


def batch():
    return collate(running.dataset(4).examples, [0, 1, 2, 3], 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_starts_without_effect_and_depends_on_its_seed_alone(family):
    plain = running.model("student", seed=1, family=family)
    ids = torch.arange(4, 20).view(2, 8)
    before, state = plain.model(ids).logits, torch.get_rng_state()
    attach(plain.model, LoraConfig(rank=4), seed=3, name="base")
    assert torch.equal(plain.model(ids).logits, before)
    assert torch.equal(torch.get_rng_state(), state)
    twin, other = (running.model("student", seed=1, family=family) for _ in range(2))
    attach(twin.model, LoraConfig(rank=4), seed=3, name="base")
    attach(other.model, LoraConfig(rank=4), seed=4, name="base")
    assert running.same(plain.model.state_dict(), twin.model.state_dict())
    assert not running.same(plain.model.state_dict(), other.model.state_dict())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_linear_layers_stay_quick_under_the_adapter(family):
    model = student(family).model
    kinds = {type(part) for name, part in model.named_modules() if name.endswith(("base_layer", "lora_A.default"))}
    assert kinds == ({OneDNNLinear, OneDNNConv1D} if family == "gpt2" else {OneDNNLinear})


@pytest.mark.parametrize("family", FAMILIES)
def test_the_adapter_computes_w_x_plus_scaled_b_a_x(family):
    model = student(family, alpha=6.0)
    part = adapted(model.model)[0][1]
    x = torch.randn(3, part.in_features)
    a, b = part.lora_A["default"].weight, part.lora_B["default"].weight
    want = part.base_layer(x).double() + 6.0 / 4 * x.double() @ a.double().T @ b.double().T
    torch.testing.assert_close(part(x).double(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("spec", ["fkl", "rkl", "0.5*ce+0.5*akl", "atkd"])
def test_only_the_adapter_takes_gradient_and_the_heads_is_never_computed(family, spec, monkeypatch):
    model = student(family)
    wanted = []
    real = fused_loss._fold

    def fold(hidden, head, work, want):
        wanted.append(want)
        return real(hidden, head, work, want)

    monkeypatch.setattr(fused_loss, "_fold", fold)
    loss, _ = step_of(model, spec)(batch(), 20)
    loss.backward()
    took = {name for name, parameter in model.model.named_parameters() if parameter.grad is not None}
    assert took == {name for name, _ in model.model.named_parameters() if "lora_" in name}
    assert [want[1:] for want in wanted] == [(False, False)]


def test_the_adapters_gradient_is_the_chain_rule_of_the_whole_weights():
    """dL/dB = s (dL/dW) A' and dL/dA = s B' (dL/dW), with dL/dW from the merged model, all in float64."""
    model = student()
    model.model.double()
    whole = running.model("student", seed=1)
    whole = replace(whole, model=merged(model.adapter).requires_grad_(True))
    output: Any = whole.model.get_output_embeddings()
    whole = replace(whole, head=replace(whole.head, weight=output.weight))
    teacher = running.model("teacher", seed=2)
    teacher.model.double()
    for one in (model, whole):
        step = DistillStep(one, LiveTeacher(teacher), build_objective("fkl"), vocab=running.VOCAB)
        step(batch(), 20)[0].backward()
    dense: dict[str, Any] = dict(whole.model.named_parameters())
    for name, part in adapted(model.model):
        a, b, slope = part.lora_A["default"].weight, part.lora_B["default"].weight, dense[f"{name}.weight"].grad
        torch.testing.assert_close(b.grad, 2.0 * slope @ a.T, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(a.grad, 2.0 * b.T @ slope, rtol=1e-9, atol=1e-12)
    assert len(adapted(model.model)) == 14


@pytest.mark.parametrize("family", FAMILIES)
def test_the_saved_student_is_the_adapter_merged(family, tmp_path):
    model = student(family)
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    save_student(model, tmp_path / "out")
    assert running.same(before, model.model.state_dict())
    again = load_model(str(tmp_path / "out"), device=CPU, role="student")
    ids = torch.arange(4, 36).view(4, 8)
    ours, theirs = model.model(ids).logits, again.model(ids).logits
    torch.testing.assert_close(theirs, ours, rtol=0, atol=4e-6 * ours.abs().max().item())
    assert not torch.allclose(theirs, running.model("student", seed=1, family=family).model(ids).logits, atol=1e-3)
    names = load_file(tmp_path / "out" / "model.safetensors")
    assert not [name for name in names if "lora" in name or "base_layer" in name]
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(plain(ids).logits, theirs, rtol=0, atol=1e-6)


def test_the_adapter_alone_is_what_peft_reads(tmp_path):
    from peft import PeftModel

    model = student()
    save_adapter(model.adapter, tmp_path / "adapter")
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == "base"
    again = PeftModel.from_pretrained(tiny.model(seed=1), str(tmp_path / "adapter")).eval()
    ids = torch.arange(4, 20).view(2, 8)
    torch.testing.assert_close(again(ids).logits, model.model(ids).logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpoints_hold_the_adapter_alone_and_resume_bit_for_bit(tmp_path, dropout):
    whole = running.training(tmp_path / "whole", student=student(dropout=dropout), save_every=5)
    train(whole)
    start = running.model("student", seed=1).model.state_dict()
    after = running.weights(whole)
    frozen = {name.replace(".base_layer", ""): value for name, value in after.items() if "lora_" not in name}
    assert running.same(frozen, start)
    kept = load_file(tmp_path / "whole" / "checkpoint-00000012" / "weights.safetensors")
    assert kept
    assert all("lora_" in name for name in kept)
    moments = load_file(tmp_path / "whole" / "checkpoint-00000012" / "optimizer.safetensors")
    assert all("lora_" in name for name in moments)

    def stop(event):
        if event.kind == "progress" and event.done == 7:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(InterruptedRunError):
        train(running.training(tmp_path / "cut", student=student(dropout=dropout), report=stop))
    again = running.training(tmp_path / "cut", student=student(dropout=dropout), save_every=5)
    train(again)
    assert running.same(running.weights(again), running.weights(whole))
    assert running.metrics(tmp_path / "cut") == running.metrics(tmp_path / "whole")


@pytest.mark.parametrize("targets", [("lm_head",), ("embed_tokens",), ("no_such_layer",), ("q_proj", "lm_head")])
def test_an_adapter_on_head_embedding_or_nothing_is_refused(targets):
    model = running.model("student", seed=1)
    with pytest.raises(InputError, match=r"takes no adapter|not found") as caught:
        attach(model.model, LoraConfig(rank=2, targets=targets), seed=0, name="base")
    assert "\n" not in str(caught.value)


def test_named_targets_are_the_only_ones_adapted():
    model = running.model("student", seed=1)
    attach(model.model, LoraConfig(rank=2, targets=("q_proj", "v_proj")), seed=0, name="base")
    assert {name.split(".")[-1] for name, _ in adapted(model.model)} == {"q_proj", "v_proj"}


@pytest.mark.parametrize(
    "settings, random, what",
    [
        (LoraConfig(rank=4), True, "random weights"),
        (LoraConfig(alpha=4.0), False, "without a rank"),
        (LoraConfig(keep=True), False, "without a rank"),
    ],
)
def test_adapters_without_sense_are_refused(settings, random, what):
    with pytest.raises(UsageError, match=what):
        check_adapter(settings, student_is_random=random)


def test_nothing_is_refused_without_an_adapter():
    check_adapter(LoraConfig(), student_is_random=True)
