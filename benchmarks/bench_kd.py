"""kd's side of the step benchmark: the real loop on rows that are ids already."""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from kdcli.config.schema import HardwareConfig, TrainConfig
from kdcli.data.tokenize import Example, TokenDataset
from kdcli.end_tokens import EndTokens
from kdcli.events import Event
from kdcli.losses.build import build_objective
from kdcli.models.devices import prepare
from kdcli.models.head import split_head, trunk_of
from kdcli.models.internals import cache_interface_of
from kdcli.models.kernels import fuse_activations
from kdcli.models.load import LanguageModel
from kdcli.sources.base import Source, SourceContext
from kdcli.sources.build import build_source
from kdcli.sources.dataset import DatasetSource, DatasetWindows
from kdcli.teachers.base import LiveTeacher, Teacher
from kdcli.training.job import TrainJob
from kdcli.training.trainer import train


def train_marks(
    folder: Path, rows: list[tuple[list[int], int]], options: argparse.Namespace, steps: int, batch_size: int
) -> tuple[list[float], list[tuple[int, int]]]:
    """Return the clock at the end of each step, and the tokens and response tokens of each."""
    examples = examples_of(rows)
    config = _config(steps, batch_size)
    sizes = [
        (sum(len(rows[at][0]) for at in step), sum(len(rows[at][0]) - rows[at][1] for at in step))
        for step in DatasetWindows(SourceContext(TokenDataset(examples), config, pad_id=0)).steps(0)
    ]
    teacher = LiveTeacher(language_model(folder / "teacher"))
    return run_training(folder, teacher, examples, options, steps, batch_size), sizes


def on_policy_marks(
    folder: Path, prompts: list[list[int]], options: argparse.Namespace, steps: int, batch_size: int
) -> list[float]:
    """Return the clock at the end of each step in which the student answers prompts, always at full length."""
    examples = tuple(Example((*ids, 0), len(ids), "", (), "") for ids in prompts)
    source = build_source(f"student:max_new_tokens={options.new_tokens}")
    teacher = LiveTeacher(language_model(folder / "teacher"))
    return run_training(folder, teacher, examples, options, steps, batch_size, source)


def run_training(
    folder: Path,
    teacher: Teacher,
    examples: tuple[Example, ...],
    options: argparse.Namespace,
    steps: int,
    batch_size: int,
    source: Source | None = None,
) -> list[float]:
    """Train a fresh student with the real loop, and return the clock at the end of each step."""
    hardware = HardwareConfig(device="cpu", dtype=options.dtype, matmul_precision=options.matmul_precision)
    student = replace(language_model(folder / "student"), ends=EndTokens((options.vocab,)))
    return _marks(student, teacher, examples, options.objective, _config(steps, batch_size), hardware, source)


def train_on(
    student: LanguageModel,
    teacher: LanguageModel,
    rows: list[tuple[list[int], int]],
    objective: str,
    *,
    steps: int,
    batch_size: int,
    device: str,
) -> list[float]:
    """Train models in memory in bf16 on rows of ids and prompt lengths, and return the clock after each step."""
    hardware = HardwareConfig.model_validate({"device": device, "dtype": "bf16"})
    config = _config(steps, batch_size)
    return _marks(student, LiveTeacher(teacher), examples_of(rows), objective, config, hardware, None)


def _marks(
    student: LanguageModel,
    teacher: Teacher,
    examples: tuple[Example, ...],
    objective: str,
    config: TrainConfig,
    hardware: HardwareConfig,
    source: Source | None,
) -> list[float]:
    marks: list[float] = []

    def report(event: Event) -> None:
        if event.kind == "progress":
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            marks.append(time.perf_counter())

    device = prepare(hardware)
    context = SourceContext(
        TokenDataset(examples), config, pad_id=0, student=student, vocab=student.vocab, autocast=device.autocast
    )
    with tempfile.TemporaryDirectory() as run:
        train(
            TrainJob(
                student=student,
                teacher=teacher,
                loss=build_objective(objective),
                windows=(source or DatasetSource()).open(context),
                vocab=student.vocab,
                train=config,
                device=device,
                folder=Path(run),
                identity={},
                report=report,
                resume_command="",
            )
        )
    return marks


def examples_of(rows: list[tuple[list[int], int]]) -> tuple[Example, ...]:
    return tuple(Example(tuple(ids), prompt, "", (), "") for ids, prompt in rows)


def language_model(path: Path) -> LanguageModel:
    return in_memory(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32), str(path))


def in_memory(model: PreTrainedModel, name: str = "random") -> LanguageModel:
    """Return a model ready for the loop, without a tokenizer: rows are ids already."""
    fuse_activations(model.eval())  # as load_model does
    no_tokenizer: Any = None
    reading = cache_interface_of(trunk_of(model), model.config)
    return LanguageModel(
        model, no_tokenizer, split_head(model), name, "", EndTokens((0,)), 0, model.config.vocab_size, reading=reading
    )


def _config(steps: int, batch_size: int) -> TrainConfig:
    return TrainConfig(batch_size=batch_size, max_steps=steps, save_every=10_000)
