import json
import signal

import pytest
import torch

from kdcli.data.tokenize import TokenDataset
from kdcli.errors import ExperimentChangedError, IntegrityError, InterruptedRunError, NumericsError
from kdcli.events import Event
from kdcli.training.trainer import train
from running import dataset, exact_pair, metrics, model, same, training, weights

OBJECTIVES = ["fkl", "akl", "atkd", "0.5*ce+0.5*jsd"]


def stop_at(step):
    """Report that raises SIGINT once a step is reached."""

    def report(event: Event):
        if event.kind == "progress" and event.done == step:
            signal.raise_signal(signal.SIGINT)

    return report


def whole(tmp_path, spec="fkl", **options):
    run = training(tmp_path / "whole", spec, **options)
    outcome = train(run)
    return run, outcome


@pytest.mark.parametrize("spec", OBJECTIVES)
def test_loss_falls_and_the_teacher_stays(tmp_path, spec):
    teacher = model("teacher", seed=2)
    before = {name: value.clone() for name, value in teacher.model.state_dict().items()}
    _, outcome = whole(tmp_path, spec, teacher=teacher, max_steps=40, lr=2e-2)
    losses = [json.loads(line)["loss"] for line in metrics(tmp_path / "whole").splitlines()]
    assert outcome.steps == len(losses) == 40
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    assert same(before, teacher.model.state_dict())
    assert not teacher.model.training
    assert all(parameter.grad is None for parameter in teacher.model.parameters())


@pytest.mark.parametrize("spec", OBJECTIVES)
@pytest.mark.parametrize("step", [1, 5, 6, 11])
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path, spec, step):
    run, outcome = whole(tmp_path, spec)
    with pytest.raises(InterruptedRunError, match=f"step {step} of 12") as caught:
        train(training(tmp_path / "cut", spec, report=stop_at(step)))
    assert caught.value.exit_code == 130
    again = training(tmp_path / "cut", spec, student=model("student", seed=9))
    second = train(again)
    assert same(weights(run), weights(again))
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "cut")
    assert (second.steps, second.tokens) == (outcome.steps, outcome.tokens)


def test_resumed_twice_in_one_epoch_with_dropout_and_gpt2(tmp_path):
    def student():
        return model("student", seed=1, family="gpt2", attn_pdrop=0.1, resid_pdrop=0.1)

    run, _ = whole(tmp_path, student=student(), teacher=model("teacher", seed=2, family="gpt2"))
    teacher = model("teacher", seed=2, family="gpt2")
    for step in (2, 4):
        with pytest.raises(InterruptedRunError):
            train(training(tmp_path / "cut", student=student(), teacher=teacher, report=stop_at(step)))
    again = training(tmp_path / "cut", student=student(), teacher=teacher)
    train(again)
    assert same(weights(run), weights(again))
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "cut")


def test_dropout_differs_from_step_to_step_and_between_micro_batches(tmp_path, monkeypatch):
    """One sequence, again and again, by a student that does not move: only the mask can change the loss."""
    same_row = dataset(1).examples * 4
    student = model("student", seed=1, family="gpt2", attn_pdrop=0.5, resid_pdrop=0.5)
    seeds, seeded = [], torch.manual_seed
    monkeypatch.setattr(torch, "manual_seed", lambda seed: (seeds.append(seed), seeded(seed))[1])
    train(
        training(
            tmp_path, student=student, data=TokenDataset(tuple(same_row)), lr=1e-12, weight_decay=0.0, batch_size=2,
            micro_tokens=8, max_steps=4, save_every=9,
        )
    )  # fmt: skip
    losses = [json.loads(line)["loss"] for line in metrics(tmp_path).splitlines()]
    apart = [abs(one - two) for at, one in enumerate(losses) for two in losses[:at]]
    assert min(apart) > 1e-5
    assert len(seeds) == len(set(seeds)) >= 8


def test_a_finished_run_is_left_alone(tmp_path):
    whole(tmp_path)
    before = {path: path.read_bytes() for path in sorted((tmp_path / "whole").rglob("*")) if path.is_file()}
    train(training(tmp_path / "whole"))
    assert before == {path: path.read_bytes() for path in sorted((tmp_path / "whole").rglob("*")) if path.is_file()}


def test_a_damaged_newest_checkpoint_falls_back_and_says_so(tmp_path):
    run, _ = whole(tmp_path)
    with pytest.raises(InterruptedRunError):
        train(training(tmp_path / "cut", report=stop_at(11)))
    newest = tmp_path / "cut" / "checkpoint-00000011" / "optimizer.safetensors"
    raw = bytearray(newest.read_bytes())
    raw[-3] ^= 1
    newest.write_bytes(raw)
    said = []
    again = training(tmp_path / "cut", report=said.append)
    train(again)
    assert any("checkpoint-00000011 is damaged" in event.message for event in said)
    assert any("resuming from checkpoint-00000010" in event.message for event in said)
    assert same(weights(run), weights(again))
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "cut")


def test_no_valid_checkpoint_stops_and_deletes_nothing(tmp_path):
    whole(tmp_path)
    for path in (tmp_path / "whole").glob("checkpoint-*"):
        (path / "weights.safetensors").write_bytes(b"")
    before = sorted((tmp_path / "whole").rglob("*"))
    with pytest.raises(IntegrityError):
        train(training(tmp_path / "whole"))
    assert sorted((tmp_path / "whole").rglob("*")) == before


def test_another_seed_is_another_experiment(tmp_path):
    whole(tmp_path)
    with pytest.raises(ExperimentChangedError, match="seed was 0 and is now 1"):
        train(training(tmp_path / "whole", seed=1))


def test_keep_bounds_the_checkpoints(tmp_path):
    whole(tmp_path, save_every=2, keep=3)
    names = sorted(path.name for path in (tmp_path / "whole").glob("checkpoint-*"))
    assert names == ["checkpoint-00000008", "checkpoint-00000010", "checkpoint-00000012"]


@pytest.mark.parametrize("reduce", ["token", "sequence"])
@pytest.mark.parametrize("spec", ["fkl", "akl"])
def test_the_cut_into_micro_batches_does_not_matter(tmp_path, reduce, spec):
    results = []
    for name, budget in (("one", 4096), ("many", 1)):
        student, teacher = exact_pair()
        run = training(
            tmp_path / name, spec, student=student, teacher=teacher, micro_tokens=budget, reduce=reduce, max_steps=6
        )
        train(run)
        results.append(weights(run))
    for name in results[0]:
        torch.testing.assert_close(results[0][name], results[1][name], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("reduce", ["token", "sequence"])
def test_the_loss_of_a_step_is_the_mean_over_all_its_tokens_or_over_its_sequences(tmp_path, reduce):
    student, teacher = exact_pair()
    settings = {"micro_tokens": 30, "reduce": reduce, "max_steps": 2, "lr": 1e-30}
    run = training(tmp_path / "run", "ce", student=student, teacher=teacher, data=dataset(6), **settings)
    sizes, expected = [], []
    for step in range(2):
        each = []
        for batch in run.windows.window(step):
            with torch.no_grad():
                logits = student.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
            lost = torch.nn.functional.cross_entropy(logits[..., : run.vocab].mT, batch.labels, reduction="none")
            each += [one[labels >= 0] for one, labels in zip(lost, batch.labels, strict=True)]
        sizes.append(len(each))
        mean = torch.cat(each).mean() if reduce == "token" else torch.stack([one.mean() for one in each]).mean()
        expected.append(mean.item())
    assert sizes == [4, 2]
    train(run)
    losses = [json.loads(line)["loss"] for line in metrics(tmp_path / "run").splitlines()]
    assert losses == pytest.approx(expected, rel=1e-6)


def test_a_nan_stops_before_the_update(tmp_path):
    teacher = model("teacher", seed=2)
    with torch.no_grad():
        teacher.model.lm_head.weight[5] = float("nan")
    run = training(tmp_path / "run", teacher=teacher)
    before = weights(run)
    with pytest.raises(NumericsError, match="no update was made") as caught:
        train(run)
    assert caught.value.exit_code == 7
    assert same(before, weights(run))
    assert json.loads((tmp_path / "run" / "bad_batch.json").read_text())["step"] == 0


def test_gradient_checkpointing_changes_nothing(tmp_path):
    run, _ = whole(tmp_path, data=dataset(8))
    other = training(tmp_path / "checked", data=dataset(8), gradient_checkpointing=True)
    train(other)
    for name, value in weights(run).items():
        torch.testing.assert_close(value, weights(other)[name])


def test_tensorboard_receives_the_values(tmp_path):
    whole(tmp_path, report_to=("tensorboard",))
    assert list((tmp_path / "whole").rglob("events.out.tfevents*"))
