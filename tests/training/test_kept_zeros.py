"""Weights that are 0 stay 0, with their moments, whatever happens to a training."""

import json
import signal
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import running
from kdcli.config.schema import HardwareConfig
from kdcli.errors import InterruptedRunError
from kdcli.models.devices import prepare
from kdcli.models.zeros import linear_weights, zero_share
from kdcli.training.trainer import train
from ranks import on_ranks

SPEC = "ce+fkl+hidden:kind=squarehead"
HARSH = {"weight_decay": 0.5, "clip": 0.05, "betas": (0.5, 0.6), "lr": 0.05, "max_steps": 4, "save_every": 1, "keep": 9}


def thinned(student, share=0.5):
    """Set a share of the weights of its linear layers to 0."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in linear_weights(student.model):
            weight.masked_fill_(torch.rand(weight.shape, generator=generator) < share, 0.0)
    return student


def job(folder, family="llama", *, dtype="fp32", **settings):
    student = thinned(running.model("student", seed=1, family=family))
    teacher = running.model("teacher", seed=2, family=family)
    made = running.training(folder, SPEC, student=student, teacher=teacher, **{**HARSH, "keep_zeros": True, **settings})
    return replace(made, device=prepare(HardwareConfig.model_validate({"device": "cpu", "dtype": dtype})))


def zeros_of(student):
    """Name -> where its linear layers are 0."""
    matrices = {id(one) for one in linear_weights(student.model)}
    return {name: one == 0 for name, one in student.model.named_parameters() if id(one) in matrices}


def kept_in(folder, zeros):
    """How many of the zeros every checkpoint still has in weights and in each of the moments; all hold the others."""
    counts = []
    for path in sorted(folder.glob("checkpoint-*")):
        weights, moments = load_file(path / "weights.safetensors"), load_file(path / "optimizer.safetensors")
        found = [0, 0, 0]
        for name, zero in zeros.items():
            tables = weights[name], moments[f"{name}/exp_avg"], moments[f"{name}/exp_avg_sq"]
            found = [one + int((value[zero] == 0).sum()) for one, value in zip(found, tables, strict=True)]
            assert (weights[name][~zero] != 0).float().mean() > 0.99
            assert (tables[2][~zero] > 0).any()
        counts.append(found)
    return counts


@pytest.mark.parametrize(
    "family, dtype, settings",
    [("llama", "fp32", {}), ("gpt2", "fp32", {"gradient_checkpointing": True}), ("llama", "bf16", {})],
)
def test_no_zero_is_revived_at_any_checkpoint(tmp_path, family, dtype, settings):
    """Under decay, momentum and clipping, and in bf16; without the setting they are gone after one step."""
    made = job(tmp_path / "kept", family, dtype=dtype, **settings)
    zeros = zeros_of(made.student)
    total, share = sum(int(one.sum()) for one in zeros.values()), zero_share(made.student.model)
    train(made)
    assert kept_in(tmp_path / "kept", zeros) == [[total] * 3] * 4
    assert zero_share(made.student.model) == share
    free = job(tmp_path / "free", family, dtype=dtype, keep_zeros=False, max_steps=1, **settings)
    train(free)
    ((left, *_),) = kept_in(tmp_path / "free", zeros)
    assert left < 0.05 * total
    norms = [json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0]) for name in ("kept", "free")]
    assert norms[0]["gradient_norm"] < norms[1]["gradient_norm"], "a gradient that is dropped does not count"
    assert norms[0]["loss"] == norms[1]["loss"]


def test_it_is_the_training_of_weights_times_a_mask(tmp_path):
    """The gradient of f(V m) over V is that over W = V m, times m: PyTorch's parametrisation gives the same numbers."""

    class Times(torch.nn.Module):
        def __init__(self, mask):
            super().__init__()
            self.mask = mask

        def forward(self, weight):
            return weight * self.mask

    settings = {"max_steps": 3, "weight_decay": 0.3}
    kept = job(tmp_path / "kept", **settings)
    train(kept)
    times = job(tmp_path / "times", keep_zeros=False, **settings)
    for module in list(times.student.model.model.modules()):
        if isinstance(module, torch.nn.Linear):
            mask = (module.weight != 0).float()
            torch.nn.utils.parametrize.register_parametrization(module, "weight", Times(mask))
    train(times)
    for module in list(times.student.model.model.modules()):
        if torch.nn.utils.parametrize.is_parametrized(module):
            torch.nn.utils.parametrize.remove_parametrizations(module, "weight")
    other = times.student.model.state_dict()
    for name, value in kept.student.model.state_dict().items():
        assert torch.allclose(value, other[name], rtol=1e-5, atol=1e-6), name


@pytest.mark.parametrize("step", [1, pytest.param(3, marks=pytest.mark.full)])
def test_a_stopped_run_goes_on_with_the_same_zeros(tmp_path, step):
    whole = job(tmp_path / "whole")
    zeros = zeros_of(whole.student)
    train(whole)

    def stop(event):
        if event.kind == "progress" and event.done == step:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(InterruptedRunError):
        train(replace(job(tmp_path / "stopped"), report=stop))
    again = job(tmp_path / "stopped")
    train(again)
    assert running.same(running.weights(whole), running.weights(again))
    assert running.metrics(tmp_path / "whole") == running.metrics(tmp_path / "stopped")
    total = sum(int(one.sum()) for one in zeros.values())
    assert kept_in(tmp_path / "stopped", zeros) == [[total] * 3] * 4


def test_a_run_that_goes_on_where_other_zeros_would_be_chosen_keeps_its_own(tmp_path):
    """A machine that rounds otherwise prunes a few other weights; those of the checkpoint count."""

    def stop(event):
        if event.kind == "progress" and event.done == 2:
            signal.raise_signal(signal.SIGINT)

    first = job(tmp_path / "run")
    zeros = zeros_of(first.student)
    with pytest.raises(InterruptedRunError):
        train(replace(first, report=stop))
    again = job(tmp_path / "run")
    with torch.no_grad():
        for weight in linear_weights(again.student.model):
            weight.copy_(weight.roll(1, dims=1))
    train(again)
    total = sum(int(one.sum()) for one in zeros.values())
    assert kept_in(tmp_path / "run", zeros) == [[total] * 3] * 4
    whole = job(tmp_path / "whole")
    train(whole)
    assert running.same(running.weights(whole), running.weights(again))


def test_without_zeros_it_is_ordinary_training_bit_for_bit_and_says_so(tmp_path):
    said, ended = [], []
    for keep in (True, False):
        made = running.training(tmp_path / str(keep), SPEC, keep_zeros=keep, report=said.append, max_steps=4)
        assert all(value.all() for value in linear_weights(made.student.model))
        train(made)
        ended.append((running.weights(made), running.metrics(tmp_path / str(keep))))
    assert running.same(ended[0][0], ended[1][0])
    assert ended[0][1] == ended[1][1]
    warnings = [event.message for event in said if event.kind == "warning"]
    assert warnings == ["train.keep_zeros changes nothing: no weight of the student's linear layers is 0"]


# Several processes.


def run(folder, ranks, shard, *, before=lambda training: training, codes=(0,)):
    def work(rank, world):
        student, teacher = running.exact_pair()
        made = running.training(
            folder, "ce+fkl", student=thinned(student), teacher=teacher, world=(rank, world), keep_zeros=True, **HARSH
        )
        hardware = HardwareConfig.model_validate({"device": "cpu", "shard": shard})
        train(before(replace(made, hardware=hardware)))
        if rank == 0:
            torch.save(student.model.state_dict(), folder / "final.pt")

    folder.parent.mkdir(exist_ok=True)
    meeting = folder.with_name(f"{folder.name}-meeting-{len(list(folder.parent.iterdir()))}")
    found = on_ranks(ranks, work, meeting)
    said = "\n".join(path.read_text() for path in sorted(folder.parent.glob(f"{meeting.name}-rank*.txt")))
    assert set(found) == set(codes), said


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone") / "run"
    run(folder, 1, "ddp")
    return folder


def whole(folder):
    return torch.load(folder / "final.pt", weights_only=True)


@pytest.mark.parametrize(
    "ranks, shard, goes_on",
    [
        (2, "fsdp2", 1),
        pytest.param(2, "ddp", 2, marks=pytest.mark.full),
        pytest.param(3, "fsdp2", 3, marks=pytest.mark.full),
        pytest.param(2, "zero3", 2, marks=pytest.mark.full),
        pytest.param(1, "ddp", 2, marks=pytest.mark.full),
    ],
)
def test_several_processes_keep_the_zeros_that_one_keeps(tmp_path, alone, ranks, shard, goes_on):
    """Stopped after the second step, gone on with as many processes or fewer, and equal to one process all along."""

    def stopping(training):
        def report(event):
            if event.kind == "progress" and event.done == 2:
                signal.raise_signal(signal.SIGINT)

        return replace(training, report=report)

    folder = tmp_path / "run"
    run(folder, ranks, shard, before=stopping, codes=(1,))
    run(folder, goes_on, shard)
    zeros = zeros_of(thinned(running.exact_pair()[0]))
    total = sum(int(one.sum()) for one in zeros.values())
    assert kept_in(alone, zeros) == kept_in(folder, zeros) == [[total] * 3] * 4
    one, many = whole(alone), whole(folder)
    assert all((one[name] - many[name]).norm() <= 1e-9 * one[name].norm() for name in one)
