import math
from dataclasses import replace

import pytest
import torch

import running
from kdcli.config.schema import TrainConfig
from kdcli.data.batching import IGNORED
from kdcli.generation.batch_invariance import BatchInvariance
from kdcli.losses.build import build_objective
from kdcli.sources.base import SourceContext
from kdcli.sources.build import build_source
from kdcli.sources.sequences import TrainingSequence, batches
from kdcli.sources.student import StudentWindows
from kdcli.teachers.base import LiveTeacher
from kdcli.training.step import DistillStep
from kdcli.training.trainer import train


@pytest.fixture(scope="module")
def models():
    return {"student": running.model("student", seed=1), "teacher": running.model("teacher", seed=2)}


def context(models, steps=6, size=4, **changes):
    train = TrainConfig(**{"batch_size": size, "max_steps": steps, "micro_tokens": 60, **changes})
    return SourceContext(running.dataset(20), train, pad_id=0, vocab=running.VOCAB, longest=24, **models)


@pytest.mark.parametrize("per", ["batch", "sequence"])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_share_is_within_three_deviations(models, per, rate):
    windows = build_source(f"student:rate={rate},per={per}").open(context(models, steps=1200))
    draws = [len(windows.on_policy(step, members := windows.members(step))) / len(members) for step in range(1200)]
    count = 1200 if per == "batch" else 1200 * 4
    assert abs(sum(draws) / 1200 - rate) < 3 * math.sqrt(rate * (1 - rate) / count)
    assert per == "sequence" or set(draws) == {0.0, 1.0}


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_an_answer_depends_on_neither_company_nor_place(models, autocast, monkeypatch):
    settled = []
    plain = BatchInvariance.verify
    monkeypatch.setattr(BatchInvariance, "verify", lambda *given: (plain(*given), settled.append(1)))
    windows = build_source("student:max_new_tokens=9").open(replace(context(models), autocast=autocast))
    whole = {one.row: one.example.ids for one in windows.write(3, [4, 9, 2, 11, 0])}
    for row in whole:
        assert windows.write(3, [row])[0].example.ids == whole[row]
    assert {one.row: one.example.ids for one in windows.write(3, [0, 11, 2])} == {row: whole[row] for row in (0, 11, 2)}
    assert bool(settled) == (autocast is not None), "what is written in bf16 is read again, alone"


def test_no_sequence_is_longer_than_all_models_can_read_and_some_are_as_long(models):
    base = context(models)
    prompts = [one.prompt_length for one in base.dataset.examples]
    windows = build_source("student:max_new_tokens=200").open(replace(base, longest=max(prompts) + 3))
    lengths = [len(one.example.ids) for one in windows.write(0, range(20))]
    assert max(lengths) == max(prompts) + 3


def test_other_steps_seeds_and_weights_give_other_words(models):
    def said(step, seed=0, source=models):
        windows = build_source("student:max_new_tokens=9").open(context(source, seed=seed))
        return [one.example.ids for one in windows.write(step, [4, 9, 2])]

    others = [said(1), said(0, seed=1), said(0, source={**models, "student": running.model("student", seed=7)})]
    assert all(other != said(0) for other in others)
    assert said(0) == said(0)


def test_greedy_words_are_the_likeliest_ones(models):
    model = models["student"]
    windows = build_source("student:temperature=0,max_new_tokens=5").open(context(models))
    for one in windows.write(0, [3, 8]):
        ids = list(one.example.ids)
        for place in range(one.example.prompt_length, len(ids)):
            tokens = torch.tensor([ids[:place]])
            logits = model.model(tokens).logits[0, -1]
            assert ids[place] == int(logits[: running.VOCAB].argmax())


def again(base, ids, mask, labels):
    """An example as it would stand in a file, from a row of a batch."""
    size = int(mask.sum())
    whole = (*ids[:size].tolist(), int(labels[size - 1]))
    return replace(base.dataset.examples[0], ids=whole, prompt_length=int((labels[:size] == IGNORED).sum()) + 1)


def test_the_gradient_is_that_of_the_same_sequences_in_a_file(models):
    student, teacher = running.exact_pair()
    base = context({"student": student, "teacher": teacher})
    window = build_source("student:max_new_tokens=6").open(base).window(0)
    fixed = [
        TrainingSequence(again(base, ids, mask, labels), 0, "student")
        for batch in window
        for ids, mask, labels in zip(batch.input_ids, batch.attention_mask, batch.labels, strict=True)
    ]

    def gradient(found):
        student.model.zero_grad()
        step = DistillStep(student, LiveTeacher(teacher), build_objective("jsd"), vocab=running.VOCAB)
        for batch in found:
            step(batch, 10)[0].backward()
        return [parameter.grad.clone() for parameter in student.model.parameters()]

    for one, other in zip(gradient(window), gradient(batches(fixed, base)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def stopping(base, source, step):
    windows = Stopping(base, source)
    windows.stop = step
    return windows


def test_a_run_resumes_on_its_own_words(tmp_path):
    def trained(name, steps):
        made = running.training(tmp_path / name, "jsd", max_steps=8, save_every=3)
        source = build_source("student:rate=0.6,max_new_tokens=8")
        base = SourceContext(
            running.dataset(), made.train, pad_id=0, student=made.student, vocab=running.VOCAB, longest=24
        )
        return replace(made, windows=stopping(base, source, steps))

    whole = trained("whole", None)
    outcome = train(whole)
    assert outcome.generated_tokens > 0
    assert outcome.generation_seconds > 0
    with pytest.raises(KeyboardInterrupt):
        train(trained("stopped", 5))
    again = trained("stopped", None)
    train(again)
    assert running.same(running.weights(whole), running.weights(again))
    assert running.metrics(tmp_path / "whole") == running.metrics(tmp_path / "stopped")
    assert b"generated_tokens" in running.metrics(tmp_path / "whole")


class Stopping(StudentWindows):
    """Windows that are pulled away at a step."""

    stop = None

    def window(self, step):
        if step == self.stop:
            raise KeyboardInterrupt
        return super().window(step)
