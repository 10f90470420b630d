"""A loaded model is the one in the folder, as a teacher or as a student."""

import pytest
import torch
from transformers import AutoModelForCausalLM

import tiny
from kdcli.errors import InputError
from kdcli.models.activations import fuse_activations
from kdcli.models.load import load_model

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
