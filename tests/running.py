"""Small trainings for the engine's tests."""

from pathlib import Path

import torch

import tiny
from kdcli.config.schema import HardwareConfig, TrainConfig
from kdcli.data.tokenize import Example, TokenDataset
from kdcli.events import silent
from kdcli.losses.build import build_objective
from kdcli.models.devices import prepare
from kdcli.models.load import assemble
from kdcli.sources.base import SourceContext
from kdcli.sources.dataset import DatasetWindows
from kdcli.teachers.base import LiveTeacher
from kdcli.training.job import TrainJob

VOCAB = len(tiny.WORDS)


def dataset(count=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    examples = []
    for index in range(count):
        size = 6 + index % 7
        ids = torch.randint(4, VOCAB, (size,), generator=generator).tolist()
        examples.append(Example((1, *ids, 2), 2 + index % 3, "", (), f"row {index}"))
    return TokenDataset(tuple(examples))


def model(role, seed=0, family="llama", **sizes):
    return assemble(
        tiny.model(family, seed=seed, **sizes), tiny.tokenizer(), role, "digest", device=torch.device("cpu"), role=role
    )


def exact_pair():
    """A student and a teacher whose arithmetic is float64 throughout, without dropout."""
    off = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
    pair = model("student", seed=1, family="gpt2", **off), model("teacher", seed=2, family="gpt2", **off)
    for side in pair:
        side.model.double()
    return pair


def training(
    folder: Path, spec="fkl", *, student=None, teacher=None, report=silent, data=None, world=(0, 1), **settings
):
    config = TrainConfig(
        **{"batch_size": 4, "max_steps": 12, "save_every": 5, "lr": 1e-2, "micro_tokens": 24, **settings}
    )
    folder.mkdir(parents=True, exist_ok=True)
    rank, size = world
    student = student or model("student", seed=1)
    return TrainJob(
        student=student,
        teacher=LiveTeacher(teacher or model("teacher", seed=2)),
        loss=build_objective(spec),
        windows=DatasetWindows(SourceContext(data or dataset(), config, pad_id=0, rank=rank, world=size)),
        vocab=VOCAB,
        train=config,
        device=prepare(HardwareConfig(device="cpu")),
        folder=folder,
        identity={"loss": spec, "seed": config.seed},
        report=report,
        resume_command="kd distill ...",
    )


def weights(training):
    return {name: value.clone() for name, value in training.student.model.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def metrics(folder):
    return (folder / "metrics.jsonl").read_bytes()
