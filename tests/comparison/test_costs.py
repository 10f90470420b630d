"""FLOPs by hand, sizes from headers, and what is said where something is missing."""

import csv
import io
import json
import signal

import pytest

import evaluated
import study
import tiny
from kdcli.comparison.cost import (
    Size,
    Spent,
    cost_of,
    flops,
    generation_flops,
    machine_table,
    model_size,
    read_machine,
    spent_on,
)
from kdcli.distill.run import distill, read_run
from kdcli.errors import InterruptedRunError
from kdcli.events import silent
from kdcli.sources.token_counts import TokenCounts

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
    assert (done.teacher_tokens_read, done.flops_done) == (5000, asked.flops)
    (record.folder / "status.json").write_text(
        json.dumps({"state": "done", "student_tokens": 5000, "teacher_tokens": 0})
    )
    assert cost_of(record) == asked
    spent = spent_on(record)
    assert spent.teacher_tokens_read == 0
    assert 0 < spent.flops_done < asked.flops
    (record.folder / "status.json").write_text(json.dumps({"state": "done"}))
    assert spent_on(record) == Spent(None, None, 0, 0.0)
    assert cost_of(record).flops is None


def test_seconds_and_memory_are_kept_apart(tmp_path):
    record, _ = evaluated.run(tmp_path / "run", "=cmd", 3, 0.0, "x")
    path = tmp_path / "costs.csv"
    path.write_text(machine_table([("=cmd", record, cost_of(record))]))
    assert "'=cmd,3,run," in path.read_text()
    assert read_machine(path, ["=cmd"]) == {("=cmd", 3): (4.5, 2**20)}
    assert read_machine(tmp_path / "none", ["=cmd"]) == {}


@pytest.mark.parametrize(
    ("student", "teacher", "effort", "expected"),
    [
        (STUDENT, TEACHER, TokenCounts(), 0),
        (STUDENT, None, TokenCounts(9, 4), 2 * (8 * 9 + 2 * 4)),
        (STUDENT, TEACHER, TokenCounts(9, 4, 7, 3), 2 * (8 * 9 + 2 * 4) + 2 * (80 * 7 + 20 * 3)),
        (STUDENT, None, TokenCounts(9, 4, 7, 3), None),
        (None, TEACHER, TokenCounts(9, 4, 7, 3), None),
        (STUDENT, TEACHER, None, None),
    ],
)
def test_flops_of_generation_by_hand(student, teacher, effort, expected):
    assert generation_flops(student, teacher, effort) == expected


def trained(parts, name, loss, report=silent, **data):
    settings = parts.run(name, loss, max_steps=4, save_every=2)
    rows = settings.data.model_copy(update={"eval": None, **data})
    return distill(settings.model_copy(update={"data": rows}), report)


def test_a_teachers_text_is_asked_for_by_every_run_and_written_by_one(tmp_path):
    """Expectations from the text as it lies there: one reading of a prompt for two answers, and one of each whole."""
    parts, made = study.Parts(tmp_path), str(tmp_path / "made")
    spec = "ce@teacher:answers=2,max_new_tokens=7"
    first, second = (trained(parts, name, spec, teacher_text=made) for name in ("first", "second"))
    (path,) = (tmp_path / "made").glob("teacher-*/text.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    prompts = {line["row"]: line["prompt_tokens"] for line in lines}
    said = [len(line["ids"]) - line["prompt_tokens"] for line in lines]
    read = sum(prompts.values()) + sum(count - 1 for count in said) + sum(len(line["ids"]) - 1 for line in lines)
    heads = len(prompts) + sum(count - 1 for count in said) + sum(said)
    size, student = model_size(str(parts.teacher)), model_size(str(parts.student))
    assert len(prompts) == 24
    writing = 2.0 * (size.trunk * read + size.head * heads)
    costs = [cost_of(run) for run in (first, second)]
    assert costs[0] == costs[1]
    assert costs[0].generated_tokens == sum(said)
    assert costs[0].generation_flops == writing
    assert costs[0].teacher_tokens == 0
    assert costs[0].teacher_parameters == size.parameters
    learning = 6.0 * (student.trunk * costs[0].student_tokens + student.head * first.tokens)
    assert costs[0].flops == learning + writing
    wrote, found = (spent_on(run) for run in (first, second))
    assert (wrote.flops_done, wrote.written_tokens) == (learning + writing, sum(said))
    assert wrote.writing_seconds > 0
    assert (found.flops_done, found.written_tokens, found.writing_seconds) == (learning, 0, 0.0)
    table = list(csv.DictReader(io.StringIO(machine_table([("one", first, costs[0])]))))
    assert float(table[0]["generation_flops"]) == writing
    assert int(table[0]["written_tokens"]) == int(table[0]["generated_tokens"]) == sum(said)


def test_what_a_student_writes_is_counted_across_a_stop(tmp_path):
    parts, spec = study.Parts(tmp_path), "jsd@student:max_new_tokens=6"
    whole = trained(parts, "whole", spec)

    def stop(event):
        if event.kind == "progress" and event.done == 2:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(InterruptedRunError):
        trained(parts, "cut", spec, stop)
    cut = trained(parts, "cut", spec)
    costs = [cost_of(run) for run in (whole, cut)]
    assert costs[0] == costs[1]
    assert costs[0].generation_flops > 0
    status = json.loads((whole.folder / "status.json").read_text())
    assert status["effort"]["student_said"] == status["generated_tokens"] == costs[0].generated_tokens
    assert status["effort"]["teacher_read"] == 0
    assert costs[0].flops > costs[0].generation_flops
    assert read_run(whole.folder).steps == 4


def test_a_run_that_did_not_record_its_generation_has_no_flops(tmp_path):
    record, _ = evaluated.run(tmp_path / "run", "ce@student", 0, 0.0, "x")
    tiny.folder(record.model)
    assert cost_of(record).flops is not None
    status = {"state": "done", "student_tokens": 5000, "teacher_tokens": 0, "generated_tokens": 70}
    (record.folder / "status.json").write_text(json.dumps(status))
    assert (cost_of(record).flops, cost_of(record).generation_flops) == (None, None)
    assert spent_on(record).flops_done is None
