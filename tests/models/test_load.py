"""A loaded model is the one in the folder, as a teacher or as a student."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import tiny
from kdcli.errors import InputError
from kdcli.models.kernels import fuse_activations
from kdcli.models.load import load_model, rehearse_saving
from models.folders import edit

CPU = torch.device("cpu")


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_logits_are_those_of_transformers(tmp_path, family):
    folder = tiny.folder(tmp_path / family, family)
    ours = load_model(str(folder), device=CPU, role="teacher")
    theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.randint(0, 40, (2, 9))
    mask = torch.ones_like(ids)
    with torch.no_grad():
        found = ours.head.logits(ours.hidden(ids, mask), ours.head.rows)
        expected = theirs(ids, attention_mask=mask).logits
        fuse_activations(theirs)
        assert torch.equal(found, theirs(ids, attention_mask=mask).logits)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert ours.vocab == len(tiny.WORDS)
    assert ours.positions == 128


def test_roles_modes_and_types(good):
    teacher = load_model(str(good), device=CPU, role="teacher", dtype=torch.bfloat16)
    student = load_model(str(good), device=CPU, role="student")
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    assert all(parameter.requires_grad for parameter in student.model.parameters())
    assert not teacher.model.training
    assert not student.model.training
    assert teacher.head.weight.dtype == torch.bfloat16
    assert student.head.weight.dtype == torch.float32
    assert student.path == str(good)


def test_digest_follows_weights_and_config_only(good, tmp_path):
    first = load_model(str(good), device=CPU, role="student").digest
    assert load_model(str(good), device=CPU, role="teacher").digest == first
    other = tiny.folder(tmp_path / "other", seed=1)
    assert load_model(str(other), device=CPU, role="student").digest != first
    same = tiny.folder(tmp_path / "same")
    (same / "README.md").write_text("x")
    assert load_model(str(same), device=CPU, role="student").digest == first


def test_sequences_beyond_the_positions(good):
    loaded = load_model(str(good), device=CPU, role="student")
    loaded.check_length(128)
    with pytest.raises(InputError, match=r"MOD-22.*max_length 129 > 128 positions"):
        loaded.check_length(129)


def test_loading_is_silent_and_leaves_random_state_alone(good, capfd):
    state = torch.get_rng_state()
    load_model(str(good), device=CPU, role="student")
    assert torch.equal(state, torch.get_rng_state())
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


MASK = torch.ones(1, 1, 8, 8).tril()
NEO = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]}
GPTJ = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "rotary_dim": 8}
LOCAL = MASK.bool() ^ MASK.tril(-4).bool()


@pytest.mark.parametrize(
    "family,sizes,before",
    [
        ("gpt2", {}, "transformer.h.{}.attn"),
        ("gpt2", {}, "h.{}.attn"),
        ("gptj", GPTJ, "transformer.h.{}.attn"),
        ("gpt_neo", NEO, "transformer.h.{}.attn.attention"),
    ],
)
def test_constants_of_the_code_among_the_weights_are_skipped(tmp_path, family, sizes, before):
    folder = tiny.folder(tmp_path / family, family, **sizes)
    plain = load_model(str(folder), device=CPU, role="student")
    tensors = load_file(folder / "model.safetensors")
    if before.startswith("h."):
        tensors = {name.removeprefix("transformer."): value for name, value in tensors.items()}
    masks = {f"{before.format(layer)}.bias": mask for layer, mask in ((0, MASK), (1, LOCAL))}
    scalars = {f"{before.format(layer)}.masked_bias": torch.tensor(-1e4) for layer in (0, 1)}
    save_file(tensors | masks | scalars, folder / "model.safetensors", metadata={"format": "pt"})
    again = load_model(str(folder), device=CPU, role="student")
    ids = torch.randint(0, 40, (2, 9))
    assert torch.equal(again.model(ids).logits, plain.model(ids).logits)


@pytest.mark.parametrize(
    "name,value",
    [
        ("h.0.attn.masked_bias", torch.ones(2)),
        ("h.0.attn.mask", torch.full((1, 1, 3, 3), 0.5).tril()),
        ("h.0.attn.mask", torch.ones(1, 1, 3, 3)),
        ("h.0.attn.mask", torch.zeros(1, 1, 3, 3)),
        ("h.0.attn.weight", torch.ones(3, 3).tril()),
    ],
)
def test_what_may_have_been_learnt_is_not_skipped(tmp_path, name, value):
    folder = tiny.folder(tmp_path / "gpt2", "gpt2")
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, name: value}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=f"1 tensor in the weights that the model lacks: {name}"):
        load_model(str(folder), device=CPU, role="student")


@pytest.mark.parametrize(
    "key,value", [("output_attentions", True), ("output_hidden_states", True), ("return_dict", False)]
)
def test_what_a_forward_pass_gives_back_is_not_the_configs_to_say(tmp_path, key, value):
    folder = tiny.folder(tmp_path / "in")
    edit(folder / "config.json", **{key: value})
    found = load_model(str(folder), device=CPU, role="student")
    assert any(f"config.json's {key} ignored" in note for note in found.notes)
    rehearse_saving(found, tmp_path / "out")
