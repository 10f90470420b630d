"""Training from a teacher of another tokenizer, by the command: ULD, the teacher's text, and both together."""

import contextlib
import csv
import json
import os
import signal

import pytest

import cutters
from kdcli.config.resolve import resolve
from kdcli.config.schema import DistillConfig
from kdcli.distill.run import distill
from kdcli.errors import InterruptedRunError
from kdcli.events import Event
from kdcli.storage.atomic import digest_file
from shell import kd
from study import Heard

ROWS = [
    {"prompt": f"say {letter}:", "completion": f" {letter * 3}. Once upon a time there was a {word}"}
    for letter, word in zip(
        "abcdefgh", ("girl", "ball", "park", "Größe", "café", "日本", "day 🙂", "ball."), strict=True
    )
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    home = tmp_path_factory.mktemp("across")
    cutters.folder(home / "teacher", "fallback", seed=1, initializer_range=0.4)
    cutters.folder(home / "student", "bytes-300", seed=2, hidden_size=8)
    for name, rows in (("train", ROWS * 2), ("test", ROWS[:3])):
        (home / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return home


def run(home, name, *more):
    answer = kd("distill", "--teacher", "teacher", "--student", "student", "--data", "train.jsonl", "--batch-size", "4",
                "--max-steps", "20", "--lr", "0.01", "--device", "cpu", "-o", name, *more, folder=home)  # fmt: skip
    assert answer.code == 0, answer.err
    lines = [json.loads(line) for line in (home / name / "metrics.jsonl").read_text().splitlines()]
    return answer, lines


def test_uld_trains_where_both_have_read_the_same(base):
    answer, lines = run(base, "uld", "--loss", "ce+1.5*uld", "--eval-data", "test.jsonl", "--max-new-tokens", "8")
    assert "tokenizers differ (student 300 tokens, teacher 379)" in answer.err
    assert all(0.2 < line["uld.aligned"] < 0.9 for line in lines)
    assert len({line["uld.aligned"] for line in lines}) > 1
    assert sum(line["ce"] for line in lines[-4:]) < sum(line["ce"] for line in lines[:4])
    assert "agreement left out: it compares token ids with a teacher's" in answer.err
    scores = json.loads((base / "uld" / "eval" / "test" / "results.json").read_text())["scores"]
    scores = {one["name"] for one in scores}
    assert "perplexity" in scores
    assert "agreement" not in scores


def test_uld_alone_lowers_the_distance(base):
    _, lines = run(base, "alone", "--loss", "uld", "--max-steps", "60")
    first, last = ([line["uld"] / line["uld.aligned"] for line in part] for part in (lines[:8], lines[-8:]))
    assert sum(last) < 0.8 * sum(first)


def test_micro_batches_change_only_roundings(base):
    _, small = run(base, "small", "--loss", "ce+1.5*uld", "--set", "train.micro_tokens=40", "--max-steps", "3")
    _, large = run(base, "large", "--loss", "ce+1.5*uld", "--set", "train.micro_tokens=4000", "--max-steps", "3")
    for one, two in zip(small, large, strict=True):
        for name in ("loss", "ce", "uld", "uld.aligned", "gradient_norm"):
            assert one[name] == pytest.approx(two[name], rel=1e-4), name


def test_a_stopped_run_goes_on_bit_for_bit(base):
    def settings(output):
        paths = [f"teacher={base / 'teacher'}", f"student={base / 'student'}", f"data.train={base / 'train.jsonl'}"]
        common = ["train.max_steps=6", "train.save_every=2", "train.batch_size=4", "hardware.device=cpu"]
        return resolve(DistillConfig, sets=["loss=ce+1.5*uld", *paths, *common, f"output={base / output}"])

    def stop(event: Event) -> None:
        if event.kind == "progress" and event.message == "training" and event.done == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    whole = distill(settings("whole"), Heard())
    with contextlib.suppress(InterruptedRunError):
        distill(settings("stopped"), stop)
    again = distill(settings("stopped"), Heard())
    for name in ("model/model.safetensors", "metrics.jsonl"):
        assert digest_file(again.folder / name) == digest_file(whole.folder / name)
    identity = json.loads((whole.folder / "manifest.json").read_text())["identity"]
    assert len(identity["teacher.tokenizer"]) == 64


def test_the_teachers_text_goes_to_the_student_as_text(base):
    answer, lines = run(base, "seqkd", "--config", "seqkd", "--set", "loss=ce@teacher:max_new_tokens=12,answers=2")
    assert "tokenizers differ" in answer.err
    assert lines[-1]["ce"] < lines[0]["ce"]
    (text,) = (base / "seqkd" / "made").glob("*/text.jsonl")
    written = [json.loads(line) for line in text.read_text().splitlines()]
    assert len(written) == 2 * len(ROWS) * 2
    teacher = cutters.cutter("fallback")
    for one in written:
        prompt, said = one["ids"][: one["prompt_tokens"]], one["ids"][one["prompt_tokens"] :]
        assert prompt == teacher(one["prompt"])["input_ids"]
        assert one["prompt"] + one["response"] == teacher.decode([*prompt, *said], skip_special_tokens=True)


def test_uld_goes_with_the_teachers_text_and_with_the_students_own(base):
    for name, source in (("taught", "teacher:max_new_tokens=12"), ("own", "student:rate=1,max_new_tokens=12")):
        _, lines = run(base, name, "--loss", f"ce+uld@{source}", "--max-steps", "4")
        assert all(line["uld.aligned"] > 0 for line in lines)


def test_a_comparison_lets_the_live_teacher_speak_and_knows_no_cost_it_has_not_counted(base):
    answer = kd("compare", "ce", "ce+1.5*uld", "--teacher", "teacher", "--student", "student", "--data", "train.jsonl",
                "--eval-data", "test.jsonl", "--max-steps", "3", "--batch-size", "4", "--device", "cpu", "--seeds", "1",
                "--metric", "perplexity", "-o", "study", folder=base)  # fmt: skip
    assert answer.code == 0, answer.err
    assert not (base / "study" / "teacher-cache").exists()
    with (base / "study" / "costs.csv").open(newline="") as file:
        costs = {line["objective"]: line for line in csv.DictReader(file)}
    assert costs["ce"]["teacher_tokens"] == "0"
    assert costs["ce+1.5*uld"]["teacher_tokens"] == costs["ce+1.5*uld"]["teacher_tokens_read"] == ""


def test_a_plan_and_a_look_at_one_batch(base):
    common = ["--teacher", "teacher", "--student", "student", "--data", "train.jsonl", "--device", "cpu"]
    plan = kd("plan", *common, "--loss", "ce+1.5*uld", "--max-steps", "3", folder=base)
    assert plan.code == 0, plan.err
    assert "student 300 real ids, teacher 379 of its own" in plan.out
    (line,) = [line for line in plan.out.splitlines() if "alignment" in line]
    share = float(line.split()[1].rstrip("%")) / 100
    _, (step,) = run(base, "every-row", "--loss", "uld", "--batch-size", "16", "--max-steps", "1")
    assert share == pytest.approx(step["uld.aligned"], abs=1e-3)
    seen = kd("inspect", "batch", "ce", "uld", *common, "--set", "train.batch_size=4", folder=base)
    assert seen.code == 0, seen.err
    assert "uld" in seen.out


def test_one_tokenizer_for_both_needs_no_alignment_and_goes_with_a_cache(base):
    cutters.folder(base / "twin", "bytes-300", seed=5)
    done = kd("cache", "--teacher", "twin", "--data", "train.jsonl", "--device", "cpu", "-o", "cache", folder=base)
    assert done.code == 0, done.err
    runs = []
    for name, more in (("live", ()), ("cached", ("--teacher-cache", "cache"))):
        _, lines = run(base, name, "--loss", "ce+1.5*uld", "--teacher", "twin", "--max-steps", "3", *more)
        assert "uld.aligned" not in lines[0]
        runs.append(lines)
    assert runs[0] == runs[1]
