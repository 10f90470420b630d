"""FLOPs by hand, sizes from headers, and what is said where something is missing."""

import json

import pytest

import evaluated
import tiny
from kdcli.runs.costs import Size, cost_of, flops, machine_table, model_size, read_machine, spent_on

STUDENT, TEACHER = Size(12, 8, 2), Size(120, 80, 20)


@pytest.mark.parametrize(
    ("teacher", "seen", "taught", "expected"),
    [
        (TEACHER, 100, 100, 6 * (8 * 100 + 2 * 10) + 2 * (80 * 100 + 20 * 10)),
        (TEACHER, 100, 25, 6 * (8 * 100 + 2 * 10) + 2 * (80 * 25 + 20 * 2.5)),
        (TEACHER, 100, 0, 6 * (8 * 100 + 2 * 10)),
        (None, 100, 0, 6 * (8 * 100 + 2 * 10)),
        (None, 100, 5, None),
        (TEACHER, None, 100, None),
        (TEACHER, 100, None, None),
    ],
)
def test_flops_by_hand(teacher, seen, taught, expected):
    assert flops(STUDENT, teacher, 10, seen, taught) == expected
    assert flops(None, teacher, 10, seen, taught) is None


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_size_of_a_model_is_its_parameters(tmp_path, family):
    folder = tiny.folder(tmp_path / family, family)
    model = tiny.model(family)
    size = model_size(str(folder))
    head = model.get_output_embeddings().weight.numel()
    assert size.parameters == sum(weight.numel() for weight in model.parameters())
    assert size.head == head
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert size.trunk == size.parameters - (1 if tied else 2) * head
    assert model_size(str(tmp_path / "nothing")) is None


def test_an_objective_without_teacher_asks_for_none(tmp_path):
    record, _ = evaluated.run(tmp_path / "run", "ce", 0, 0.0, "x")
    cost = cost_of(record)
    assert (cost.teacher_tokens, cost.student_tokens, cost.parameters, cost.flops) == (0, 5000, None, None)


def test_a_cache_changes_what_is_done_not_what_is_asked_for(tmp_path):
    record, _ = evaluated.run(tmp_path / "run", "fkl", 0, 0.0, "x")
    tiny.folder(record.model)
    (record.folder / "config.yaml").write_text(f"teacher: {tiny.folder(tmp_path / 'teacher', hidden_size=32)}\n")
    asked, done = cost_of(record), spent_on(record)
    assert done == (5000, asked.flops)
    (record.folder / "status.json").write_text(json.dumps({"student_tokens": 5000, "teacher_tokens": 0}))
    assert cost_of(record) == asked
    read, spent = spent_on(record)
    assert read == 0
    assert 0 < spent < asked.flops
    (record.folder / "status.json").write_text("{}")
    assert spent_on(record) == (None, None)
    assert cost_of(record).flops is None


def test_seconds_and_memory_are_kept_apart(tmp_path):
    record, _ = evaluated.run(tmp_path / "run", "=cmd", 3, 0.0, "x")
    path = tmp_path / "costs.csv"
    path.write_text(machine_table([("=cmd", record, cost_of(record))]))
    assert "'=cmd,3,run," in path.read_text()
    assert read_machine(path, ["=cmd"]) == {("=cmd", 3): (4.5, 2**20)}
    assert read_machine(tmp_path / "none", ["=cmd"]) == {}
