"""Two and three processes give the numbers of one, whole or in shards, and one goes on where two stopped."""

import gc
import json
import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from accelerate.utils import gather_object
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import running
from kdcli.config.schema import HardwareConfig, LoraConfig
from kdcli.models.adapters import attach
from kdcli.sources.base import SourceContext
from kdcli.sources.build import build_source
from kdcli.training import compile
from kdcli.training.fsdp import Sharded
from kdcli.training.step import DistillStep
from kdcli.training.trainer import train
from ranks import on_ranks

SPEC = "0.5*ce+0.5*akl"
WAYS = ["ddp", "fsdp2"]


def run(folder: Path, ranks: int, shard: str, *, before=lambda rank, training: training, codes=(0,), **settings):
    """Train in a folder; the student's weights at the end lie in final.pt."""
    settings = {"max_steps": 4, "batch_size": 5, "micro_tokens": 24, "save_every": 1, "keep": 9, **settings}

    def work(rank: int, world: int) -> None:
        student, teacher = running.exact_pair()
        made = running.training(folder, SPEC, student=student, teacher=teacher, world=(rank, world), **settings)
        made = before(rank, replace(made, hardware=HardwareConfig.model_validate({"device": "cpu", "shard": shard})))
        train(made)
        if rank == 0:
            torch.save(student.model.state_dict(), folder / "final.pt")

    folder.parent.mkdir(exist_ok=True)
    meeting = folder.with_name(f"{folder.name}-meeting-{len(list(folder.parent.iterdir()))}")
    found = on_ranks(ranks, work, meeting)
    said = "\n".join(path.read_text() for path in sorted(folder.parent.glob(f"{meeting.name}-rank*.txt")))
    assert set(found) == set(codes), said
    return said


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "run"
    run(folder, 1, "ddp")
    return folder


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Largest distance of two tables of tensors, each tensor relative to its norm."""
    assert one.keys() == other.keys()
    return max((other[name] - one[name]).norm().item() / max(one[name].norm().item(), 1e-12) for name in one)


def saved(folder: Path, step: int) -> dict[str, torch.Tensor]:
    path = folder / f"checkpoint-{step:08d}"
    return {**load_file(path / "weights.safetensors"), **load_file(path / "optimizer.safetensors")}


def final(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "final.pt", weights_only=True)


@pytest.mark.parametrize("ranks, shard", [(2, "ddp"), (3, "ddp"), (2, "fsdp2"), (3, "fsdp2"), (2, "zero3")])
def test_several_processes_give_the_numbers_of_one(tmp_path, alone, ranks, shard):
    run(tmp_path / "run", ranks, shard)
    first = {name: value for name, value in saved(alone, 1).items() if name.endswith("exp_avg")}
    gradients = {name: value for name, value in saved(tmp_path / "run", 1).items() if name.endswith("exp_avg")}
    assert all(value.dtype == torch.float64 for value in first.values())
    assert apart(first, gradients) < 1e-12
    assert apart(saved(alone, 4), saved(tmp_path / "run", 4)) < 1e-9
    assert apart(final(alone), final(tmp_path / "run")) < 1e-9
    logs = [(side / "metrics.jsonl").read_text().splitlines() for side in (alone, tmp_path / "run")]
    for line, other in zip(*logs, strict=True):
        one, many = json.loads(line), json.loads(other)
        assert one["tokens"] == many["tokens"]
        assert many["loss"] == pytest.approx(one["loss"], rel=1e-6)
        assert many["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-9)


@pytest.mark.parametrize("shard, first, second", [(way, *order) for way in WAYS for order in ((2, 1), (1, 2))])
def test_another_number_of_processes_goes_on(tmp_path, alone, shard, first, second):
    folder, told = tmp_path / "run", tmp_path / "told"

    def stopping(rank, training):
        def report(event):
            if event.kind == "progress" and event.done == 2 and rank == 0:
                signal.raise_signal(signal.SIGINT)

        return replace(training, report=report)

    def listening(rank, training):
        def report(event):
            if event.kind == "note" and rank == 0:
                with told.open("a") as notes:
                    notes.write(event.message + "\n")

        return replace(training, report=report)

    said = run(folder, first, shard, before=stopping, codes=(1,))
    assert said.count("InterruptedRunError: error[STOP]: stopped at step 2 of 4") == first
    run(folder, second, shard, before=listening)
    assert apart(final(alone), final(folder)) < 1e-9
    assert f"saved by {first} process" in told.read_text()
    assert f"goes on with {second}" in told.read_text()
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize("ending, codes", [("whole", (0,)), ("interrupted", (1,))])
def test_ddp_is_gone_before_its_processes_part(tmp_path, ending, codes):
    """Else the last process group is released by DDP's reducer, which may wait for gloo's threads for ever."""

    def watching(rank, training):
        destroy = dist.destroy_process_group

        def asked(group=None):
            left = sum(isinstance(thing, DistributedDataParallel) for thing in gc.get_objects())
            (tmp_path / f"left-{rank}").write_text(str(left))
            destroy(group)

        def report(event):
            if ending == "interrupted" and event.kind == "progress" and event.done == 2 and rank == 0:
                signal.raise_signal(signal.SIGINT)

        dist.destroy_process_group = asked
        return replace(training, report=report)

    run(tmp_path / "run", 2, "ddp", before=watching, codes=codes)
    assert [(tmp_path / f"left-{rank}").read_text() for rank in range(2)] == ["0", "0"]


@pytest.mark.parametrize("shard, kept", [("ddp", 3), ("fsdp2", 2)])
def test_a_killed_process_ends_the_run_and_it_goes_on(tmp_path, alone, shard, kept):
    folder = tmp_path / "run"

    def dying(rank, training):
        windows, window = training.windows, training.windows.window

        def asked(step):
            if rank == 1 and step == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return window(step)

        windows.window = asked
        return training

    said = run(folder, 2, shard, before=dying, codes=(1, -signal.SIGKILL), save_every=2)
    assert "another process of the run ended or does not answer, at step 4" in said
    assert f"saved at step {kept}. Fix: go on with: kd distill" in said
    assert (folder / f"checkpoint-{kept:08d}").is_dir()
    run(folder, 1, shard, save_every=2)
    assert apart(final(alone), final(folder)) < 1e-9


def test_a_process_without_a_sequence_does_not_hold_up_the_rest(tmp_path):
    ways = [*WAYS, "zero3"]
    for shard in ways:
        run(tmp_path / shard, 3, shard, batch_size=2, max_steps=2)
    run(tmp_path / "one", 1, "ddp", batch_size=2, max_steps=2)
    for shard in ways:
        assert apart(final(tmp_path / "one"), final(tmp_path / shard)) < 1e-9


def gathered(folder: Path, shard: str) -> dict[str, list[str]]:
    """Which whole weights a process still holds of those its step read: after the forward, and after the backward."""
    folder.mkdir(parents=True)

    def work(rank: int, world: int) -> None:
        student, teacher = running.exact_pair()
        made = running.training(folder, SPEC, student=student, teacher=teacher, world=(rank, world))
        read: dict[str, torch.Tensor] = {}

        def step(student, teacher):
            sides = {"student": student.model.transformer, "teacher": teacher.inner.transformer}
            for side, trunk in sides.items():
                for name in ("h.0.ln_1", "ln_f", "wte"):
                    keep = partial(lambda key, module, *_: read.update({key: module.weight}), f"{side} {name}")
                    trunk.get_submodule(name).register_forward_hook(keep)
            return DistillStep(student, teacher, made.loss, vocab=made.vocab)

        def whole() -> list[str]:
            assert not any(isinstance(weight, DTensor) for weight in read.values())
            return [key for key, weight in read.items() if weight.untyped_storage().nbytes()]

        place = Sharded(torch.device("cpu"), world, step, made.student, made.teacher, keep=shard == "fsdp2")
        with place.accumulating(True):
            loss, _ = place.step(made.windows.window(0)[0], 20)
            found = {"read": list(read), "forward": whole()}
            loss.backward()
        found["backward"] = whole()
        assert all(isinstance(weight, DTensor) for weight in place.step.parameters())
        (folder / f"{rank}.json").write_text(json.dumps(found))

    assert on_ranks(2, work, folder / "meeting") == [0, 0]
    first, second = (json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    return first


def test_zero3_drops_every_weight_after_the_forward_and_fsdp2_keeps_embeddings_and_head(tmp_path):
    names = [f"{side} {part}" for side in ("teacher", "student") for part in ("wte", "h.0.ln_1", "ln_f")]
    kept, dropped = gathered(tmp_path / "fsdp2", "fsdp2"), gathered(tmp_path / "zero3", "zero3")
    assert sorted(kept["read"]) == sorted(dropped["read"]) == sorted(names)
    assert sorted(kept["forward"]) == ["student ln_f", "student wte", "teacher ln_f", "teacher wte"]
    assert dropped["forward"] == []
    assert kept["backward"] == dropped["backward"] == []


class Looking:
    """A monitor that writes down what the student says of a fixed sequence, on the first process only."""

    ends = False

    def __init__(self, student, file: Path) -> None:
        self.student, self.file = student, file

    def recall(self, lines) -> None:
        return

    def due(self, step: int) -> bool:
        return step == 2

    def evaluate_if_due(self, step: int) -> dict | None:
        logged(self.student, self.file)
        return {"scores": {}}


@torch.no_grad()
def logged(model, file: Path) -> None:
    ids = torch.tensor([[1, 5, 9, 13]])
    logits = model.logits(model.hidden(ids, torch.ones_like(ids)))
    with file.open("a") as lines:
        lines.write(f"{logits.logsumexp(-1).sum().item()!r}\n")


def outside(folder: Path, ranks: int, shard: str) -> list[float]:
    """What student and teacher say outside the steps: in windows on every process, and in a monitor."""

    def using(rank, training):
        windows, window = training.windows, training.windows.window
        teacher = training.teacher.model

        def asked(step):
            for _ in range(1 + rank):  # processes generate different numbers of tokens
                logged(training.student, folder / f"student-{rank}.txt")
            logged(teacher, folder / f"teacher-{rank}.txt")
            return window(step)

        windows.window = asked
        both = frozenset({"student", "teacher"})
        return replace(training, generates_with=both, monitor=Looking(training.student, folder / "monitor.txt"))

    run(folder, ranks, shard, before=using, max_steps=3)
    return [
        [float(line) for line in (folder / name).read_text().splitlines()]
        for name in ("student-0.txt", "teacher-0.txt", "monitor.txt", *(["student-1.txt"] if ranks > 1 else []))
    ]


def test_models_in_shards_are_whole_where_they_are_used_outside_a_step(tmp_path):
    student, teacher, seen = outside(tmp_path / "one", 1, "ddp")
    shards = outside(tmp_path / "two", 2, "fsdp2")
    assert shards[0] == pytest.approx(student, rel=1e-12)
    assert shards[1] == pytest.approx(teacher, rel=1e-12)
    assert shards[2] == pytest.approx(seen, rel=1e-12)
    assert shards[3][::2] == shards[3][1::2] == shards[0]
    assert len(set(student)) == 3


def test_an_adapter_with_recomputed_activations_in_shards(tmp_path):
    def adapted(rank, training):
        student = training.student
        wrapped = attach(student.model, LoraConfig(rank=2), seed=3, name="student")
        student.model.double()
        return replace(training, student=replace(student, adapter=wrapped))

    run(tmp_path / "one", 1, "ddp", before=adapted, max_steps=2)
    run(tmp_path / "two", 2, "fsdp2", before=adapted, max_steps=2, gradient_checkpointing=True)
    assert all("lora" in name for name in saved(tmp_path / "one", 2))
    assert apart(saved(tmp_path / "one", 2), saved(tmp_path / "two", 2)) < 1e-9
    assert apart(final(tmp_path / "one"), final(tmp_path / "two")) < 1e-9


def writing(world: int):
    """What lets a run train on what its student writes at each step."""

    def before(rank: int, training):
        context = SourceContext(
            running.dataset(), training.train, pad_id=0, rank=rank, world=world, student=training.student,
            vocab=running.VOCAB, longest=24, **({"gather": gather_object} if world > 1 else {}),
        )  # fmt: skip
        windows = build_source("student:max_new_tokens=7").open(context)
        return replace(training, windows=windows, generates_with=frozenset({"student"}))

    return before


@pytest.mark.parametrize("shard", WAYS)
def test_a_student_writes_the_same_in_several_processes(tmp_path, shard):
    for name, ranks in (("one", 1), ("two", 2)):
        run(tmp_path / name, ranks, shard, before=writing(ranks), max_steps=3)
    assert apart(final(tmp_path / "one"), final(tmp_path / "two")) < 1e-9
    logs = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("one", "two")]
    written = [[json.loads(line)["generated_tokens"] for line in lines] for lines in logs]
    assert written[0] == written[1]
    assert min(written[0]) > 0
    efforts = [
        json.loads(path.read_text())["state"]["effort"]
        for name in ("one", "two")
        for path in (tmp_path / name).glob("checkpoint-00000003/state.json")
    ]
    assert efforts[0] == efforts[1]
    assert efforts[0]["student_said"] == sum(written[0]) < efforts[0]["student_read"]


@pytest.mark.parametrize("shard", [*WAYS, "zero3"])
def test_compiled_layers_in_several_processes(tmp_path, alone, shard):
    def compiling(rank, training):
        compile.BACKEND = "eager"
        return replace(training, hardware=training.hardware.model_copy(update={"compile": True}))

    run(tmp_path / "run", 2, shard, before=compiling)
    assert apart(saved(alone, 4), saved(tmp_path / "run", 4)) < 1e-9
