"""A step over several sizes: its loss and gradient by plain autograd, its stages, its low-rank pairs, and resuming."""

import os
import signal
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

import running
import sliced
from kdcli.data.batching import IGNORED, Batch, collate
from kdcli.errors import InterruptedRunError
from kdcli.losses.build import build_objective
from kdcli.models.family_layout import form_of
from kdcli.students.cut import slice_model, slice_parts
from kdcli.students.palette import Size, palette_of
from kdcli.students.supernet import SharedSlice, make_supernet
from kdcli.students.supernet_spec import parse_supernet
from kdcli.training.supernet import SupernetStep, draw_sizes, sizes_of_stage, stage_of
from kdcli.training.trainer import train

CPU = torch.device("cpu")
DIVISOR = 16
"""What losses are divided by: a power of two, which rounds nothing."""
SPEC = "supernet:widths=0.5+1,depths=0.333+1"


def supernet(tmp_path, spec=SPEC, family="llama", **sizes):
    teacher = tmp_path / "teacher"
    if not teacher.is_dir():
        sliced.folder(teacher, family, **sizes)
    return make_supernet(spec, str(teacher), rows=None, device=CPU)


def step_of(tmp_path, spec=SPEC, loss="fkl", **options):
    """A step in float64 throughout, on a family whose norms are computed in it, too."""
    off = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.0)
    student = supernet(tmp_path, spec, "gpt2", **off)
    student.model.double()
    return SupernetStep(student, build_objective(loss), parse_supernet(spec), vocab=running.VOCAB, **options)


def batch():
    return collate(running.dataset(3).examples, [0, 1, 2], pad_id=0)


def by_hand(step, spec, given: Batch):
    """The loss of each size and its gradient over the supernet's weights, with whole logits and plain autograd."""
    model, palette = step.model, palette_of(step.model.config, "T")
    form, valid = form_of(model.config, "T"), given.labels != IGNORED
    told, found = {}, []
    for size in step.sizes:
        kept = palette.kept(size, form)
        own = slice_model(model, kept).train(model.training)
        own.requires_grad_()
        out = own(given.input_ids, attention_mask=given.attention_mask, output_hidden_states=True)
        hidden = list(_blocks(own, given))
        log_q = out.logits[valid].log_softmax(-1)
        ce = functional.nll_loss(log_q, given.labels[valid], reduction="sum") / DIVISOR
        if not told:
            told, loss = {"log_p": log_q.detach(), "hidden": [one.detach() for one in hidden]}, ce
        else:
            kl = (told["log_p"].exp() * (told["log_p"] - log_q)).sum() / DIVISOR
            loss = (1 - spec.alpha) * ce + spec.alpha * kl
            for place, one in enumerate(hidden, start=1):
                there = told["hidden"][-(-place * form.layers // len(hidden)) - 1]
                apart = (one - there[..., : one.shape[-1]])[valid].square().sum()
                loss = loss + spec.beta * apart / (DIVISOR * form.width)
        loss.backward()
        whole = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
        grads = {name: value.grad for name, value in own.named_parameters()}
        for part in slice_parts(whole, model.config, kept):
            ranges = [torch.arange(length) for length in whole[part.source].shape]
            index = [part.entries.get(place, every) for place, every in enumerate(ranges)]
            if grads[part.name] is not None:
                whole[part.source][torch.meshgrid(*index, indexing="ij")] += grads[part.name]
        found.append((loss.item(), whole))
    return found


def _blocks(model, given):
    kept = []
    hooks = [layer.register_forward_hook(lambda _, __, out: kept.append(out)) for layer in model.transformer.h]
    model(given.input_ids, attention_mask=given.attention_mask)
    for hook in hooks:
        hook.remove()
    return [one[0] if isinstance(one, tuple) else one for one in kept]


@pytest.mark.parametrize("gamma", [0, 0.5, 1])
def test_the_gradient_is_the_scaled_sum_over_the_sizes(tmp_path, gamma):
    text = f"{SPEC},gamma={gamma}"
    step, spec = step_of(tmp_path, text), parse_supernet(text)
    step.begin(9, 10)
    assert [str(size) for size in step.sizes][:2] == ["width=1,depth=1", "width=0.5,depth=0.333333"]
    assert len(step.sizes) == 4
    given = batch()
    total, parts = step(given, DIVISOR)
    total.backward()
    expected, value = {name: 0.0 for name, _ in step.model.named_parameters()}, 0.0
    whole = sum(one.numel() for one in step.model.parameters())
    for size, (loss, grads) in zip(step.sizes, by_hand(step, spec, given), strict=True):
        own = sum(one.numel() for one in _alone(step, size).parameters())
        scale = (whole / own) ** gamma / 4
        assert scale == pytest.approx(step.scale(size) / 4, rel=1e-12)
        value += scale * loss
        for name, grad in grads.items():
            expected[name] = expected[name] + scale * grad
    assert total.item() == pytest.approx(value, rel=1e-12)
    for name, one in step.model.named_parameters():
        assert torch.allclose(one.grad, expected[name], rtol=1e-11, atol=1e-13), name
    assert set(parts) == {f"{role}/{one}" for role in ("smallest", "between") for one in ("ce", "fkl", "hidden")} | {
        "largest/ce"
    }


def _kept(step, size):
    return palette_of(step.model.config, "T").kept(size, form_of(step.model.config, "T"))


def _alone(step, size):
    return slice_model(step.model, _kept(step, size))


def test_a_stage_trains_its_sizes_and_draws_them_from_seed_and_step(tmp_path):
    palette = palette_of(supernet(tmp_path, "supernet:widths=0.5+1,depths=0.333+0.667+1").model.config, "T")
    stages = [[str(size) for size in sizes_of_stage(palette, stage)] for stage in range(3)]
    assert stages[0] == ["width=1,depth=1"]
    assert stages[1] == ["width=0.5,depth=1", "width=1,depth=1"]
    assert len(stages[2]) == 6
    sizes = [Size(width / 8, 1.0) for width in range(1, 9)]
    drawn = [tuple(draw_sizes(sizes, 4, 0, step)) for step in range(200)]
    assert all(one[0] == sizes[-1] and one[1] == sizes[0] and len(set(one)) == 4 for one in drawn)
    assert drawn == [tuple(draw_sizes(sizes, 4, 0, step)) for step in range(200)]
    assert {one for few in drawn for one in few} == set(sizes)
    assert drawn != [tuple(draw_sizes(sizes, 4, 1, step)) for step in range(200)]
    assert [stage_of(step, 4, parse_supernet(SPEC).used_stages) for step in range(4)] == [1, 1, 2, 2]
    assert parse_supernet("supernet:widths=0.5+1").used_stages == (0, 1, 0)
    assert parse_supernet("supernet:widths=1,depths=0.5+1").used_stages == (0, 0, 1)


def test_low_rank_pairs_are_shared_by_all_sizes_and_trained_one_stage_after_the_other(tmp_path):
    text = f"{SPEC},update=low-rank,rank=3"
    step = step_of(tmp_path, text)
    before = {name: value.clone() for name, value in step.model.named_parameters()}
    matrices = {name: value.shape for name, value in before.items() if ".h." in name and value.dim() == 2}
    trained = {name: value for name, value in step.named_parameters() if value.requires_grad}
    assert sum(one.numel() for one in trained.values()) == 2 * 3 * sum(sum(shape) for shape in matrices.values())
    step.begin(0, 10)
    assert all(torch.equal(value, before[name]) for name, value in step.weights().items()), "a stage starts as it was"
    for at, stage, other in ((0, "stage1", "stage2"), (9, "stage2", "stage1")):
        step.begin(at, 10)
        step(batch(), DIVISOR)[0].backward()
        moved = {name: value.grad is not None and value.grad.abs().sum() > 0 for name, value in trained.items()}
        assert all(moved[name] for name in moved if f"{stage}.down" in name), "A is not 0, so B has a gradient"
        assert not any(moved[name] for name in moved if other in name)
        with torch.no_grad():
            for name, value in trained.items():
                if stage in name:
                    value.add_(0.01 * torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name))))
                value.grad = None
    held = {name: value.detach().clone() for name, value in step.weights().items()}
    assert all(torch.equal(held[name], before[name]) != (name in matrices) for name in held)
    small = step.sizes[1]
    one = SharedSlice(replace(supernet(tmp_path, text), model=step.model), _kept(step, small))
    logits = one.run(held, lambda model: model.model(batch().input_ids).logits)
    step.finish()
    after = one.run(dict(step.model.named_parameters()), lambda model: model.model(batch().input_ids).logits)
    assert torch.equal(after, logits), "what is saved is what was trained"
    assert torch.allclose(_alone(step, small)(batch().input_ids).logits, logits, rtol=1e-12)
    assert step.scale(small) == pytest.approx((_pairs(matrices) / _pairs(_matrices(_alone(step, small)))) ** 0.5)


def _matrices(model):
    return {name: value.shape for name, value in model.named_parameters() if ".h." in name and value.dim() == 2}


def _pairs(matrices):
    return 3 * sum(sum(shape) for shape in matrices.values())


def job(folder, tmp_path, spec=SPEC, loss="fkl", report=None, **settings):
    made = running.training(folder, loss, student=supernet(tmp_path, spec), **settings)
    return replace(made, teacher=None, supernet=parse_supernet(spec), **({} if report is None else {"report": report}))


@pytest.mark.parametrize("update", [pytest.param("full", marks=pytest.mark.full), "low-rank"])
def test_a_training_that_was_stopped_ends_with_the_same_bits(tmp_path, update):
    spec = f"{SPEC},update={update}"
    whole = job(tmp_path / "whole", tmp_path, spec, save_every=2, max_steps=6)
    train(whole)

    def stop(event):
        if event.kind == "progress" and event.done == 4:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(InterruptedRunError):
        train(job(tmp_path / "cut", tmp_path, spec, save_every=2, max_steps=6, report=stop))
    again = job(tmp_path / "cut", tmp_path, spec, save_every=2, max_steps=6)
    train(again)
    assert running.same(running.weights(whole), running.weights(again))
    assert running.metrics(tmp_path / "whole") == running.metrics(tmp_path / "cut")
    start = supernet(tmp_path, spec).model.state_dict()
    assert not running.same(running.weights(again), start)


def test_every_divergence_of_one_pass_trains_the_smaller_sizes(tmp_path):
    for loss in ("rkl", "jsd", "akl"):
        made = job(tmp_path / loss, tmp_path, loss=loss, max_steps=1)
        train(made)
        told = [line for line in running.metrics(tmp_path / loss).decode().splitlines() if f"smallest/{loss}" in line]
        assert len(told) == 1
