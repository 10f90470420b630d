"""A diagnosis names what will do and what will not, and leaves with the first failure's code."""

import pytest
import torch

import cutters
import tiny
from kdcli.config.schema import DataConfig, DoctorConfig, LoraConfig
from kdcli.data.batching import collate
from kdcli.diagnostics.compare_teachers import between_models
from kdcli.diagnostics.doctor import diagnose
from kdcli.events import silent
from kdcli.models.packing import find_valid
from running import dataset, model


@pytest.fixture
def setting(tmp_path):
    teacher = tiny.folder(tmp_path / "teacher", seed=2, hidden_size=64, intermediate_size=128)
    student, rows = tiny.folder(tmp_path / "student", seed=1), tiny.rows(tmp_path / "rows.jsonl", 12)
    return {
        "teacher": str(teacher), "student": str(student), "data": DataConfig(train=str(rows), template="plain"),
        "output": str(tmp_path),
    }  # fmt: skip


def states(diagnosis):
    return {check.name: check.state for check in diagnosis.checks}


def test_a_sound_setting_is_ok_throughout(setting):
    found = diagnose(DoctorConfig(**setting), silent)
    assert found.exit_code == 0
    names = states(found)
    assert {"versions", "device", "dtype", "memory", "disk", "pair", "data", "student", "teacher"} <= set(names)
    assert "fail" not in names.values()


@pytest.mark.parametrize(("length", "state"), [(None, "ok"), (12, "warn")], ids=["whole", "cut"])
def test_rows_are_said_to_be_cut_only_if_they_are_whatever_their_file_is_called(setting, tmp_path, length, state):
    rows = tiny.rows(tmp_path / "shortcut.jsonl", 12)
    data = DataConfig(train=str(rows), template="plain", **({"max_length": length} if length else {}))
    found = diagnose(DoctorConfig(**(setting | {"data": data})), silent)
    (line,) = [check for check in found.checks if check.name == "data"]
    assert line.state == state, line.what
    assert ("responses cut at 12 tokens" in line.what) == bool(length)


@pytest.mark.parametrize(
    "change, name, code",
    [
        ({"teacher": "./nowhere/at/all"}, "pair", 3),
        ({"data": DataConfig(train="./nothing.jsonl")}, "data", 3),
        ({"student": "random:layers=1,width=8,heads=2", "lora": LoraConfig(rank=2)}, "lora", 2),
        ({"data": DataConfig(train="rows", max_length=4)}, "data", 3),
    ],
    ids=["teacher", "rows", "adapter", "length"],
)
def test_what_will_not_do_is_named_with_a_fix_and_its_code(setting, change, name, code):
    found = diagnose(DoctorConfig(**(setting | change)), silent)
    failed = [check for check in found.checks if check.state == "fail"]
    assert (failed[0].name, found.exit_code) == (name, code)
    assert failed[0].fix


def test_a_teacher_of_another_tokenizer_is_a_warning_that_says_what_would_do(setting, tmp_path):
    teacher = cutters.folder(tmp_path / "other", "fallback", seed=3, hidden_size=64, intermediate_size=128)
    found = diagnose(DoctorConfig(**(setting | {"teacher": str(teacher)}), teacher_quantization="int8"), silent)
    assert found.exit_code == 0
    (line,) = [check for check in found.checks if check.name == "pair"]
    assert line.state == "warn"
    assert "tokenizers differ (student 47 tokens, teacher 379)" in line.what
    assert "ce+1.5*uld" in line.fix
    assert states(found)["teacher in int8"] in ("ok", "warn")  # compared on the rows as the teacher reads them


def test_a_rounded_teacher_is_compared_with_the_whole_one(setting):
    found = diagnose(DoctorConfig(**setting, teacher_quantization="int8"), silent)
    line = next(check for check in found.checks if check.name == "teacher in int8")
    assert line.state == "ok"
    assert "top-1 agreement" in line.what


def test_differences_are_those_of_the_whole_distributions():
    first, second = model("teacher", seed=2), model("teacher", seed=3)
    batch = collate(dataset(1).examples, [0], 0)
    found = between_models(first, second, [batch])
    valid = find_valid(batch.labels)
    with torch.no_grad():
        logs = [torch.log_softmax(one.model(batch.input_ids).logits.double(), -1) for one in (first, second)]
    one, two = (valid.pack(log) for log in logs)
    assert found.kl == pytest.approx((one.exp() * (one - two)).sum(1).mean().item(), rel=1e-4)
    assert found.top == pytest.approx((one.argmax(1) == two.argmax(1)).double().mean().item())
    assert found.tokens == valid.count
    assert between_models(first, first, [batch]).kl == 0.0
