"""A killed evaluation goes on with what is unanswered, and ends with the numbers of one that nobody touched."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch

import study
from kdcli.config.schema import EvalSettings, GenerationConfig
from kdcli.distill.run import distill
from kdcli.errors import MachineError
from kdcli.evaluation import answer_sources
from kdcli.evaluation.answers import Answer, AnswerKey, AnswerStore, Prompt, ask
from kdcli.evaluation.evaluate import evaluate_run
from kdcli.events import Event, silent
from kdcli.generation import Completion
from kdcli.generation.batch_invariance import BatchInvariance
from kdcli.study.verify import verify

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return study.Parts(tmp_path_factory.mktemp("kept"))


def config(parts, output, metrics=("rougeL",), seeds=(1, 2, 3), **generation):
    settings = GenerationConfig(**{"max_new_tokens": 12, "seeds": seeds, "batch_tokens": 90, **generation})
    return parts.evaluation(
        parts.student,
        teacher=None,
        output=str(output),
        evaluation=EvalSettings(metrics=metrics, generation=settings),
        pictures=False,
    )


def killed(work):
    """Fork, and wait until the child kills itself."""
    pid = os.fork()
    if not pid:
        try:
            work()
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def dying_after(answers):
    def report(event: Event) -> None:
        if event.message == "answering" and event.done >= answers:
            os.kill(os.getpid(), signal.SIGKILL)

    return report


def beside(output: Path) -> Path:
    return output.with_name(f".{output.name}.answers.jsonl")


def test_kills_lose_little_and_change_no_byte(parts, tmp_path):
    whole = evaluate_run(config(parts, tmp_path / "whole"), silent)
    output, lines = tmp_path / "killed", 0
    for answers in (5, 4, 6):
        assert killed(lambda answers=answers: evaluate_run(config(parts, output), dying_after(answers)))
        assert not output.exists()
        now = len(beside(output).read_bytes().splitlines())
        assert now >= lines + answers
        lines = now
    heard = study.Heard()
    found = evaluate_run(config(parts, output), heard)
    assert any("of 30 answers were made before" in note for note in heard.messages("note"))
    assert found.estimates == whole.estimates
    for name in ("samples.parquet", "answers.jsonl"):
        assert (output / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not beside(output).exists()
    assert all(check.passed for check in verify(tmp_path))


def test_in_bf16_neither_kills_nor_batches_change_a_byte(parts, tmp_path, monkeypatch):
    def half(output, **generation):
        made = config(parts, output, **generation)
        return made.model_copy(update={"hardware": made.hardware.model_copy(update={"dtype": "bf16"})})

    reread = []
    plain = BatchInvariance.verify
    monkeypatch.setattr(BatchInvariance, "verify", lambda *given: (plain(*given), reread.append(1)))
    evaluate_run(half(tmp_path / "whole"), silent)
    output = tmp_path / "killed"
    assert killed(lambda: evaluate_run(half(output, batch_tokens=300), dying_after(7)))
    assert 7 <= len(beside(output).read_bytes().splitlines()) < 30
    evaluate_run(half(output, batch_tokens=1), silent)
    assert (output / "answers.jsonl").read_bytes() == (tmp_path / "whole" / "answers.jsonl").read_bytes()
    assert (output / "samples.parquet").read_bytes() == (tmp_path / "whole" / "samples.parquet").read_bytes()
    assert len(reread) > 30


def test_an_answer_is_never_asked_for_twice(parts, tmp_path, monkeypatch):
    asked = []
    plain = answer_sources.LocalAnswers.answers_for

    def watch(self, questions, report):
        asked.append(sorted((question.number, seed) for question in questions for seed in question.seeds))
        return plain(self, questions, report)

    monkeypatch.setattr(answer_sources.LocalAnswers, "answers_for", watch)
    output = tmp_path / "out"
    first = evaluate_run(config(parts, output, ("rougeL", "length")), silent)
    other = evaluate_run(config(parts, output, ("exact_match", "length"), seeds=(2, 3)), silent)
    assert asked == [[(row, seed) for row in range(10) for seed in (1, 2, 3)]]
    assert other.estimates["length"] != first.estimates["length"]
    evaluate_run(config(parts, output, seeds=(2, 4)), silent)
    assert asked[1:] == [[(row, 4) for row in range(10)]]
    evaluate_run(config(parts, output, seeds=(2, 4), temperature=0.5), silent)
    evaluate_run(config(parts, output, seeds=(2, 4), temperature=0.5, batch_tokens=200), silent)
    assert [len(one) for one in asked[2:]] == [20]


def test_another_model_does_not_get_these_answers(parts, tmp_path):
    one = distill(parts.run("one", max_steps=1), silent)
    path = one.folder / "eval" / "test" / "answers.jsonl"
    before = path.read_bytes()
    other = distill(parts.run("two", max_steps=6, lr=0.1), silent)
    for file in other.model.iterdir():
        (one.model / file.name).write_bytes(file.read_bytes())
    again = evaluate_run(parts.evaluation(one.folder), silent)
    assert again.estimates == other.evaluation.estimates
    assert path.read_bytes() != before


QUESTIONS = [Prompt(number, (1, 5 + number), f"say {number}", (10, 20)) for number in range(3)]
ASKING = AnswerKey("model", GenerationConfig())


class Parrot:
    """Says the prompt and the seed; stops after some answers."""

    identity = "parrot"

    def __init__(self, stop=99):
        self.stop, self.asked = stop, []

    def answers_for(self, questions, report):
        for question in questions:
            for seed in question.seeds:
                if len(self.asked) == self.stop:
                    raise KeyboardInterrupt
                self.asked.append((question.number, seed))
                yield Answer(question.number, seed, f"{question.text} {seed}", Completion((seed,), 2))


def filled(tmp_path):
    kept = AnswerStore(tmp_path / "out", ASKING)
    said = ask(Parrot(), QUESTIONS, silent, kept)
    return said, beside(tmp_path / "out")


def test_a_torn_or_damaged_line_counts_as_no_answer(tmp_path):
    said, path = filled(tmp_path)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    damaged = [lines[0].replace(b"say 0 10", b"say 9 10"), lines[1][:30] + b"\n", b"[]\n", *lines[3:5], lines[5][:-9]]
    path.write_bytes(b"".join(damaged))
    parrot = Parrot()
    assert ask(parrot, QUESTIONS, silent, AnswerStore(tmp_path / "out", ASKING)) == said
    assert sorted(parrot.asked) == [(0, 10), (0, 20), (1, 10), (2, 20)]
    parrot = Parrot()
    assert ask(parrot, QUESTIONS, silent, AnswerStore(tmp_path / "out", ASKING)) == said
    assert parrot.asked == []


def test_an_interruption_keeps_what_was_said(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        ask(Parrot(stop=4), QUESTIONS, silent, AnswerStore(tmp_path / "out", ASKING))
    parrot = Parrot()
    ask(parrot, QUESTIONS, silent, AnswerStore(tmp_path / "out", ASKING))
    assert parrot.asked == [(2, 10), (2, 20)]


@pytest.mark.parametrize(
    "other",
    [
        AnswerKey("another model", GenerationConfig()),
        AnswerKey("model", GenerationConfig(temperature=0.5)),
        AnswerKey("model", GenerationConfig(top_p=0.5)),
        AnswerKey("model", GenerationConfig(max_new_tokens=5)),
    ],
)
def test_what_changes_an_answer_changes_its_key(other):
    for question in QUESTIONS:
        assert other.key(question, 10) != ASKING.key(question, 10)
    keys = {ASKING.key(question, seed) for question in QUESTIONS for seed in (10, 20)}
    assert len(keys) == 6
    assert ASKING.key(Prompt(0, (1, 6), "say 0", ()), 10) not in keys


def test_batch_size_and_other_seeds_change_no_key():
    same = AnswerKey("model", GenerationConfig(seeds=(1,), batch_tokens=7))
    assert same.key(QUESTIONS[0], 10) == ASKING.key(QUESTIONS[0], 10)


def test_a_folder_that_may_not_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match=r"answers\.jsonl"):
        ask(Parrot(), QUESTIONS, silent, AnswerStore(tmp_path / "file" / "out", ASKING))


def test_progress_says_how_many_answers_and_how_fast(parts):
    heard = study.Heard()
    evaluate_run(config(parts, "unused").model_copy(update={"output": None}), heard)
    seen = [event for event in heard.events if event.kind == "progress" and event.message == "answering"]
    assert [event.total for event in seen] == [30] * len(seen)
    assert [event.done for event in seen] == sorted(event.done for event in seen)
    assert seen[-1].values["tokens"] > 30
    assert seen[-1].values["tokens/s"] > 0.0


def test_bf16_answers_leave_the_weights_alone(parts, tmp_path):
    made = config(parts, tmp_path / "half")
    half = made.model_copy(update={"hardware": made.hardware.model_copy(update={"dtype": "bf16"})})
    found = evaluate_run(half, silent)
    assert found.protocol["precision"] == "bfloat16"
    lines = [json.loads(line) for line in (tmp_path / "half" / "answers.jsonl").read_text().splitlines()]
    assert len({line["key"] for line in lines}) == 30
