"""Features in the engine: which layers, which tokens, which gradients, and what owns the learned parts."""

import json
import math
import signal

import pytest
import torch
from safetensors.torch import load_file

import running
from kdcli.data.batching import collate
from kdcli.errors import InputError, InterruptedRunError
from kdcli.events import silent
from kdcli.losses.base import Layers
from kdcli.losses.build import build_objective
from kdcli.models.layers import teacher_layer_outputs
from kdcli.models.packing import find_valid
from kdcli.teachers.base import LiveTeacher
from kdcli.training.step import DistillStep
from kdcli.training.trainer import train

SPECS = ["hidden", "hidden:kind=squarehead,map=0-0/1-3", "attention", "attention:kind=scores,map=last:2"]


def pair(**sizes):
    off = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "family": "gpt2"}
    student = running.model("student", seed=1, **off, **sizes)
    teacher = running.model("teacher", seed=2, n_embd=24, n_layer=4, n_head=2, **off)
    for side in (student, teacher):
        side.model.double()
    return student, teacher


def step(spec, student, teacher, **options):
    return DistillStep(student, LiveTeacher(teacher), build_objective(spec), vocab=running.VOCAB, **options)


def batch(indexes=(0, 1, 2, 3), pad=0):
    made = collate(running.dataset().examples, list(indexes), 0)
    if not pad:
        return made
    ids, mask, labels = (
        torch.nn.functional.pad(part, (0, pad), value=value)
        for part, value in ((made.input_ids, 5), (made.attention_mask, 0), (made.labels, -100))
    )
    return type(made)(ids, mask, labels, made.example)


def value_and_grads(module, made, denominator=None):
    module.zero_grad()
    total, _ = module(made, denominator or made.targets)
    total.backward()
    return total.detach(), [None if p.grad is None else p.grad.clone() for p in module.parameters()]


def agree(one, other):
    torch.testing.assert_close(one[0], other[0], rtol=1e-11, atol=1e-13)
    for mine, theirs in zip(one[1], other[1], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("spec", [*SPECS, "0.5*ce+2*hidden:kind=cosine+rkl"])
def test_padding_changes_nothing(spec):
    module = step(spec, *pair())
    agree(value_and_grads(module, batch()), value_and_grads(module, batch(pad=5)))


def test_what_a_teacher_shows_of_a_sequence_depends_on_no_company_bit_for_bit():
    teacher = running.model("teacher", seed=2, family="gpt2", n_embd=48, n_layer=3, n_head=2)
    asked = Layers(frozenset({0, 2, 3}), frozenset({1, 3}))

    def seen(*indexes):
        made = batch(indexes)
        return teacher_layer_outputs(teacher, made, find_valid(made.labels), asked)

    whole, alone = seen(6, 0, 5, 3), [seen(index) for index in (6, 0, 5, 3)]
    assert torch.equal(whole.side.hidden, torch.cat([one.side.hidden for one in alone]))
    for layer in asked.hidden:
        assert torch.equal(whole.inner.hidden[layer], torch.cat([one.inner.hidden[layer] for one in alone]))
    for layer in asked.attention:
        maps = whole.inner.attention[layer]
        single = [one.inner.attention[layer] for one in alone]
        wide = [torch.nn.functional.pad(one, (0, maps.shape[-1] - one.shape[-1])) for one in single]
        assert torch.equal(maps, torch.cat(wide))


@pytest.mark.parametrize("spec", [*SPECS, "0.5*fkl+0.5*hidden:kind=pkd"])
def test_micro_batches_and_chunks_change_nothing(spec):
    module = step(spec, *pair(), chunk_tokens=7)
    whole = value_and_grads(step(spec, *pair()), batch())
    count = batch().targets
    pieces = [value_and_grads(module, batch((index,)), count) for index in range(4)]
    total = torch.stack([piece[0] for piece in pieces]).sum()
    grads = [sum(parts) for parts in zip(*(piece[1] for piece in pieces), strict=True)]
    agree(whole, (total, grads))


def test_hidden_states_are_those_that_transformers_tells():
    student, teacher = pair()
    module, made = step("hidden:map=0-1/1-2", student, teacher), batch()
    total, parts = module(made, made.targets)
    with torch.no_grad():
        told = [side.model(made.input_ids, attention_mask=made.attention_mask, output_hidden_states=True).hidden_states
                for side in (student, teacher)]  # fmt: skip
        valid = made.labels != -100
        gaps = []
        for one, other in ((0, 1), (1, 2)):
            carried = module.learned[f"{one}-{other}"](told[0][one][valid])
            gaps.append((carried - told[1][other][valid]).square().mean())
    assert math.isclose(total.item(), torch.stack(gaps).mean().item(), rel_tol=1e-7)
    assert list(parts) == ["hidden.0-1", "hidden.1-2", "hidden"]


def test_the_last_layer_is_taken_before_the_final_norm():
    student, teacher = pair(n_embd=24)
    made = batch()
    total, _ = step("hidden:map=2-4", student, teacher)(made, made.targets)
    heard = []
    for side in (student, teacher):
        norm = side.model.get_submodule("transformer.ln_f")
        hook = norm.register_forward_pre_hook(lambda module, args: heard.append(args[0]))
        side.model(made.input_ids, attention_mask=made.attention_mask)
        hook.remove()
    valid = made.labels != -100
    expected = (heard[0] - heard[1])[valid].square().mean()
    assert math.isclose(total.item(), expected.item(), rel_tol=1e-7)


def test_attention_rows_are_those_that_transformers_tells():
    student, teacher = pair()
    made = batch()
    total, _ = step("attention:map=2-3", student, teacher)(made, made.targets)
    maps = []
    for side, layer in ((student, 2), (teacher, 3)):
        side.model.set_attn_implementation("eager")
        with torch.no_grad():
            out = side.model(made.input_ids, attention_mask=made.attention_mask, output_attentions=True)
        maps.append(out.attentions[layer - 1])
    found = 0.0
    for row, place in (made.labels != -100).nonzero().tolist():
        ours, theirs = (one[row, :, place, : place + 1] for one in maps)
        found += (theirs * (theirs.log() - ours.log())).sum(-1).mean().item() / made.targets
    assert math.isclose(total.item(), found, rel_tol=1e-7)


def test_maps_change_neither_the_teacher_nor_what_it_says():
    student, teacher = pair()
    module = step("attention+fkl", student, teacher)
    alone = step("fkl", student, teacher)
    made = batch()
    _, together = module(made, made.targets)
    assert teacher.model.config._attn_implementation == "sdpa"
    assert student.model.config._attn_implementation == "eager"
    _, parts = alone(made, made.targets)
    assert math.isclose(together["fkl"].item(), parts["fkl"].item(), rel_tol=1e-7)


def test_an_objective_on_features_alone_computes_no_logits(monkeypatch):
    def refuse(*args):
        raise AssertionError("a head was applied")

    monkeypatch.setattr("kdcli.models.execution.product_into", refuse)
    module, made = step("hidden", *pair()), batch()
    total, grads = value_and_grads(module, made)
    assert total > 0
    assert all(grad is not None for grad in grads), "every parameter takes part, so that all ranks agree"
    with pytest.raises(AssertionError, match="a head was applied"):
        value_and_grads(step("hidden+fkl", *pair()), made)


def test_a_micro_batch_without_tokens_is_a_live_zero_that_every_parameter_belongs_to():
    made = batch()
    nothing = type(made)(made.input_ids, made.attention_mask, torch.full_like(made.labels, -100), made.example)
    total, grads = value_and_grads(step("hidden+fkl", *pair()), nothing, 1)
    assert total.item() == 0.0
    assert all(grad is not None and not grad.any() for grad in grads)


def test_learned_parts_follow_the_seed_and_not_the_global_state():
    made = [step("hidden", *pair(), seed=seed).learned.get_parameter("1-2.weight") for seed in (3, 3, 4)]
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def trained(folder, spec="0.3*fkl+hidden", report=None, **options):
    teacher = running.model("teacher", seed=2, hidden_size=24, num_hidden_layers=4)
    return running.training(folder, spec, teacher=teacher, report=report or silent, **options)


def interrupt_at(step):
    def report(event):
        if event.kind == "progress" and event.done == step:
            signal.raise_signal(signal.SIGINT)

    return report


@pytest.mark.parametrize("spec", ["0.3*fkl+hidden", "hidden:kind=squarehead+attention", "ce+attention:kind=mse"])
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path, spec):
    whole = trained(tmp_path / "whole", spec)
    train(whole)
    with pytest.raises(InterruptedRunError):
        train(trained(tmp_path / "cut", spec, report=interrupt_at(7)))
    again = trained(tmp_path / "cut", spec, student=running.model("student", seed=9))
    train(again)
    assert running.same(running.weights(whole), running.weights(again))
    assert running.metrics(tmp_path / "whole") == running.metrics(tmp_path / "cut")
    kept = [load_file(tmp_path / side / "checkpoint-00000012" / "learned.safetensors") for side in ("whole", "cut")
            if (tmp_path / side / "checkpoint-00000012" / "learned.safetensors").is_file()]  # fmt: skip
    assert len(kept) == (2 if "hidden" in spec else 0)
    assert all(running.same(kept[0], other) for other in kept)


def test_learned_parts_are_trained_and_clipped_with_the_student_and_not_exported(tmp_path):
    run = trained(tmp_path / "run", "hidden")
    before = set(run.student.model.state_dict())
    train(run)
    first = trained(tmp_path / "other", "hidden")
    start = DistillStep(first.student, first.teacher, first.loss, vocab=running.VOCAB).learned
    kept = load_file(tmp_path / "run" / "checkpoint-00000012" / "learned.safetensors")
    assert set(kept) == {"1-2.weight", "2-4.weight"}
    assert not torch.equal(kept["1-2.weight"], start.get_parameter("1-2.weight"))
    assert set(run.student.model.state_dict()) == before
    moments = load_file(tmp_path / "run" / "checkpoint-00000012" / "optimizer.safetensors")
    assert "learned/1-2.weight/exp_avg" in moments


@pytest.mark.parametrize("spec", ["hidden", "hidden:kind=cosine", "attention", "attention:kind=scores"])
def test_the_distance_falls(tmp_path, spec):
    train(trained(tmp_path, spec, max_steps=40, lr=2e-2))
    losses = [json.loads(line)["loss"] for line in running.metrics(tmp_path).splitlines()]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_a_student_whose_attention_drops_shows_whole_maps(monkeypatch):
    drops = {"embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.5}
    student = running.model("student", seed=1, family="gpt2", **drops)
    module = step("attention", student, running.model("teacher", seed=2, family="gpt2")).train()
    made = batch()
    assert module(made, made.targets)[0].item() == module(made, made.targets)[0].item()
    monkeypatch.setattr("kdcli.training.step.drop_no_attention", lambda model: None)
    student = running.model("student", seed=1, family="gpt2", **drops)
    with pytest.raises(InputError, match="miss a sum of 1"):
        step("attention", student, running.model("teacher", seed=2, family="gpt2"))


def test_features_first_and_logits_later(tmp_path):
    stages = "ramp:loss=hidden,start=1,end=0,course=step,until=0.5+ramp:loss=fkl,course=step,until=0.5"
    train(trained(tmp_path, stages))
    lines = [json.loads(line) for line in running.metrics(tmp_path).splitlines()]
    assert all((line["ramp"] > 0) != (line["ramp_2"] > 0) for line in lines)
    assert lines[0]["ramp"] > 0
    assert lines[-1]["ramp_2"] > 0
