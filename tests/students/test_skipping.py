"""Layers without a half: 0 in the file, absent where kd loads it, the same numbers, a smaller KV cache."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

import sliced
import tiny
from kdcli.errors import InputError, UsageError
from kdcli.generation.kv_cache import RowCache
from kdcli.models.cache_form import cache_form
from kdcli.models.family_layout import FAMILIES, form_of
from kdcli.models.head import trunk_of
from kdcli.models.internals import forward_with_cache, prompt_cache
from kdcli.models.left_out import FIELD, LeftOut
from kdcli.models.load import load_model, save_student
from kdcli.models.sizes import sizes_of
from kdcli.models.skipping import zero_out
from kdcli.students.made import cut_student, made_config
from kdcli.students.scores import batches_of, similarities
from sliced import rows

CPU = torch.device("cpu")
families = pytest.mark.parametrize("family", FAMILIES)


@families
@torch.no_grad()
def test_without_a_half_is_with_zeros_in_its_place(family, tmp_path):
    """kd's model lacks the modules; the folder it writes holds zeros, and gives plain transformers the same logits."""
    sliced.folder(tmp_path / "teacher", family)
    cut = cut_student("cut:skip_attention=last:1,skip_mlp=0-2", str(tmp_path / "teacher"), rows=None, device=CPU)
    assert cut.skipped == LeftOut((2,), (0, 2))
    save_student(cut.student, tmp_path / "student")
    plain, info = AutoModelForCausalLM.from_pretrained(tmp_path / "student", output_loading_info=True)
    assert not any(info.values())
    again = load_model(str(tmp_path / "student"), device=CPU, role="student")
    there = plain.eval()(sliced.ids()).logits
    for model in (cut.student.model, again.model):
        assert (model(sliced.ids()).logits - there).abs().max() < 1e-6
    assert not torch.equal(there, sliced.model(family)(sliced.ids()).logits)
    whole = sum(one.numel() for one in plain.parameters())
    left = sum(one.numel() for one in again.model.parameters())
    assert left < whole
    assert sizes_of(again.model.config).parameters == left == cut.parameters[1]
    assert sizes_of(made_config("cut:skip_attention=last:1,skip_mlp=0-2", str(tmp_path / "teacher"))).parameters == left
    assert any("the attention of layer 2" in note for note in again.notes)
    windows = cache_form(plain.config, "").windows
    assert len(windows) == 2, "two of three layers keep keys and values"


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@torch.no_grad()
def test_decoding_with_a_cache_is_reading_at_once(family, tmp_path):
    sliced.folder(tmp_path / "teacher", family)
    model = cut_student("cut:skip_attention=2", str(tmp_path / "teacher"), rows=None, device=CPU).student
    trunk, ids = trunk_of(model.model), sliced.ids(1, 8)
    whole = model.hidden(ids, torch.ones_like(ids))
    cache, mask = prompt_cache(model.model.config), torch.ones_like(ids)
    parts = []
    for at in range(8):
        positions = torch.tensor([[at]])
        parts.append(forward_with_cache(trunk, model.reading, ids[:, at : at + 1], mask[:, : at + 1], cache, positions))
    assert (torch.cat(parts, 1) - whole).abs().max() < 1e-5
    assert cache.layers[2].keys is None
    assert len(RowCache(model.model.config)._layers) == 2


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "bitnet"])
def test_a_half_that_adds_nothing_has_similarity_1_and_goes_first(family, tmp_path):
    gone = 2 if family == "gemma2" else 1  # there, layers 0 and 1 are the first of their kinds of attention
    model = sliced.model(family)
    zero_out(model, LeftOut((gone,), (2,)))
    delattr(model.config, FIELD)
    found = similarities(model, batches_of(rows(), 6, 0, CPU))
    assert found["attention"][gone] == found["mlp"][2] == 1.0
    assert max(found["attention"][0], found["attention"][3 - gone], found["mlp"][0], found["mlp"][1]) < 1 - 1e-6
    model.save_pretrained(tmp_path / "teacher")
    tiny.tokenizer().save_pretrained(tmp_path / "teacher")
    spec = "cut:skip_attention=score:1,skip_mlp=score:1"
    cut = cut_student(spec, str(tmp_path / "teacher"), rows=rows(), device=CPU)
    assert cut.skipped == LeftOut((gone,), (2,))
    with torch.no_grad():
        assert torch.allclose(cut.student.model(sliced.ids()).logits, model(sliced.ids()).logits, atol=1e-6)


@pytest.mark.parametrize(
    "spec, message",
    [
        ("cut:skip_attention=0", "first of its kind and holds the length of the KV cache"),
        ("cut:skip_attention=last:3", "only 2 of the student's 3 layers can do without"),
        ("cut:skip_mlp=3", "names layer 3, and the student has 3"),
        ("cut:skip_mlp=best:1", "skip_mlp must be last:N, score:N or a list"),
        ("cut:layers=2,except_last=true", "except_last has no effect"),
        ("cut:skip_mlp=last:1,except_last=yes", "except_last must be true or false"),
    ],
)
def test_what_cannot_be_left_out(spec, message, tmp_path):
    sliced.folder(tmp_path / "teacher", "llama")
    with pytest.raises(UsageError, match=message):
        made_config(spec, str(tmp_path / "teacher"))


def test_a_config_that_says_what_is_not_so_is_refused(tmp_path):
    folder = sliced.folder(tmp_path / "m", "llama")
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for entry, message in (
        ({"attention": [1]}, "its weights are not 0"),
        ({"attention": [0]}, "holds the length of the KV cache"),
        ({"attention": [9]}, "names no layers below 3"),
        ([1], "names no layers below 3"),
    ):
        (folder / "config.json").write_text(json.dumps({**settings, FIELD: entry}), encoding="utf-8")
        with pytest.raises(InputError, match=message):
            load_model(str(folder), device=CPU, role="student")
    assert form_of(sliced.model("llama").config, "").layers == 3
