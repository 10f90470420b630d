"""A saved student is a folder that stands on its own."""

import os

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

import tiny
from kdcli.distill.model_card import rehearse
from kdcli.errors import InputError, MachineError
from kdcli.models.load import load_model, rehearse_saving, save_student
from models.folders import edit

CPU = torch.device("cpu")


@torch.no_grad()
def test_changed_weights_come_back_bit_for_bit(good, tmp_path):
    student = load_model(str(good), device=CPU, role="student")
    for parameter in student.model.parameters():
        parameter.add_(torch.randn_like(parameter))
    save_student(student, tmp_path / "out")
    again = load_model(str(tmp_path / "out"), device=CPU, role="student")
    ids = torch.randint(0, len(tiny.WORDS), (2, 9))
    assert torch.equal(again.model(ids).logits, student.model(ids).logits)
    assert torch.equal(
        AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()(ids).logits, student.model(ids).logits
    )
    weights_and_texts = ["config.json", "generation_config.json", "model.safetensors"]
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [*weights_and_texts, "tokenizer.json", "tokenizer_config.json"]


def test_saving_twice_gives_the_same_bytes(good, tmp_path):
    student = load_model(str(good), device=CPU, role="student")
    for name in ("one", "two"):
        save_student(student, tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_a_generation_config_that_contradicts_itself_is_reduced_to_its_ids(tmp_path):
    folder = tiny.folder(tmp_path / "in")
    edit(folder / "generation_config.json", temperature=0.5, do_sample=False, eos_token_id=[2, 1])
    student = load_model(str(folder), device=CPU, role="student")
    save_student(student, tmp_path / "out")
    saved = GenerationConfig.from_pretrained(tmp_path / "out")
    assert saved.eos_token_id == [2, 1]
    assert student.model.generation_config.temperature == 0.5


@pytest.mark.parametrize("name", ["pad_token_id", "bos_token_id"])
def test_a_negative_id_stands_for_none(tmp_path, name):
    folder = tiny.folder(tmp_path / "in")
    edit(folder / "generation_config.json", **{name: -1, "temperature": 0.5, "do_sample": False})
    save_student(load_model(str(folder), device=CPU, role="student"), tmp_path / "out")
    saved = GenerationConfig.from_pretrained(tmp_path / "out")
    assert getattr(saved, name) is None
    assert saved.eos_token_id == 2


def test_a_rehearsal_writes_all_but_the_weights(good, tmp_path):
    student = load_model(str(good), device=CPU, role="student")
    for save, name in ((rehearse_saving, "before"), (save_student, "after")):
        save(student, tmp_path / name)
    before, after = (
        {path.name: path.read_bytes() for path in (tmp_path / one).iterdir()} for one in ("before", "after")
    )
    assert before == {name: text for name, text in after.items() if name != "model.safetensors"}


@pytest.mark.parametrize(
    "error,kind,code",
    [
        (ValueError("no such id"), InputError, "MOD-25"),
        (OSError(28, "full"), MachineError, "ENV-01"),
        (OSError(27, "File too large"), MachineError, "DISK-01"),
        (RuntimeError("I/O error: File too large (os error 27)"), MachineError, "DISK-01"),
    ],
)
def test_what_cannot_be_saved_is_said_in_a_rehearsal(good, tmp_path, monkeypatch, error, kind, code):
    student = load_model(str(good), device=CPU, role="student")

    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(student.tokenizer, "save_pretrained", refuse)
    with pytest.raises(kind) as caught:
        rehearse_saving(student, tmp_path / "out")
    assert caught.value.code == code


@pytest.mark.parametrize("name", ["mkdir", "rmdir"])
def test_a_disk_that_refuses_a_rehearsal_is_not_the_students_fault(good, tmp_path, monkeypatch, name):
    student = load_model(str(good), device=CPU, role="student")

    def refuse(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, name, refuse)
    with pytest.raises(MachineError) as caught:
        rehearse(student, tmp_path, "# card", adapter=False)
    assert caught.value.code == "DISK-01"
