"""A rounded teacher: layers below the head in fewer bits, the head whole, the numbers near."""

import pytest
import torch
from torch import nn

import tiny
from kdcli.data.batching import collate
from kdcli.errors import MachineError
from kdcli.models import adapters as module
from kdcli.models.adapters import check_quantization, quantize
from kdcli.models.load import load_model
from kdcli.models.packing import find_valid
from kdcli.models.skipping import LeftOut, NoFeedForward, zero_out
from kdcli.teachers.base import LiveTeacher
from running import dataset

CPU = torch.device("cpu")
SIZES = {"llama": {"hidden_size": 64, "intermediate_size": 128}, "gpt2": {"n_embd": 64}}


@pytest.fixture(params=list(SIZES))
def folder(request, tmp_path):
    return str(tiny.folder(tmp_path / "teacher", request.param, seed=2, **SIZES[request.param]))


def teacher(folder, kind):
    return load_model(folder, device=CPU, role="teacher", quantization=kind)


def rounded_layer(kind):
    """A layer's weights before and after, the latter read off the unit vectors."""
    model = tiny.model(**SIZES["llama"])
    before = model.model.layers[0].mlp.up_proj.weight.detach().clone()
    quantize(model, kind, CPU)
    return before, model.model.layers[0].mlp.up_proj(torch.eye(64)).T.detach()


def test_int8_is_a_scale_per_row_and_the_nearest_whole_number():
    before, after = rounded_layer("int8")
    step = before.abs().amax(1, keepdim=True) / 127
    assert not torch.equal(after, before)
    assert (after - before).abs().le(0.52 * step + 1e-6).all()
    assert max(len(row.unique()) for row in after) <= 256


def test_nf4_has_sixteen_values_in_a_block():
    before, after = rounded_layer("nf4")
    for block, original in zip(after.reshape(-1, 64), before.reshape(-1, 64), strict=True):
        assert len((block / original.abs().max()).mul(1e4).round().unique()) <= 16
        assert (block - original).abs().max() <= 0.16 * original.abs().max()


@pytest.mark.parametrize("kind, near", [("int8", 2e-2), ("nf4", 0.3)])
def test_head_and_embedding_stay_whole_and_the_logits_near(folder, kind, near):
    whole, rounded = teacher(folder, "none"), teacher(folder, kind)
    assert torch.equal(whole.head.weight, rounded.head.weight)
    assert type(rounded.head.weight) is nn.Parameter
    batch = collate(dataset(6).examples, [*range(6)], 0)
    packing = find_valid(batch.labels)
    sides = [LiveTeacher(one).side(batch, packing) for one in (whole, rounded)]
    first, second = (side.head.logits(side.hidden, side.head.rows) for side in sides)
    gap = (first - second).abs().max().item()
    assert 0 < gap < near * first.abs().max().item()
    assert not any(parameter.requires_grad for parameter in rounded.model.parameters())


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_rounded_teacher_says_the_same_alone_and_in_company(folder, kind):
    rounded = teacher(folder, kind)
    found = []
    for rows in ([0], [0, 1]):
        batch = collate(dataset(2).examples, rows, 0)
        found.append(LiveTeacher(rounded).side(batch, find_valid(batch.labels)).hidden)
    assert torch.equal(found[1][: len(found[0])], found[0])


@pytest.mark.parametrize("kind, library", [("int8", "torchao"), ("nf4", "bitsandbytes")])
def test_a_missing_library_is_told_before_a_weight_is_read(monkeypatch, kind, library):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MachineError, match=rf"{library} is not installed"):
        check_quantization(kind)
    check_quantization("none")


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_half_that_is_left_out_is_not_rounded(tmp_path, kind):
    """A teacher without some halves can be rounded, and answers as it would with zeros."""
    model = tiny.model(**SIZES["llama"])
    zero_out(model, LeftOut(mlp=(1,)))
    model.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    found = load_model(str(tmp_path), device=torch.device("cpu"), role="teacher", quantization=kind)
    assert [isinstance(one, NoFeedForward) for one in found.model.modules()].count(True) == 1
    assert "the feed-forward half of layer 1 is left out" in found.notes[-1]
