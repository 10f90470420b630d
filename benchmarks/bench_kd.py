"""kd's side of the step benchmark: the real loop on rows that are ids already."""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from kdcli.config import HardwareConfig, TrainConfig
from kdcli.data.examples import Example, TokenDataset
from kdcli.engine.devices import prepare
from kdcli.engine.events import Event
from kdcli.engine.loop import Training, train
from kdcli.losses.build import build_objective
from kdcli.models.activations import fuse_activations
from kdcli.models.load import LanguageModel
from kdcli.models.split import split_head
from kdcli.sources.dataset import DatasetSource


def train_marks(
    folder: Path, rows: list[tuple[list[int], int]], options: argparse.Namespace, steps: int, batch_size: int
) -> tuple[list[float], list[tuple[int, int]]]:
    """Return the clock at the end of each step, and the tokens and response tokens of each."""
    marks: list[float] = []

    def report(event: Event) -> None:
        if event.kind == "progress":
            marks.append(time.perf_counter())

    config = TrainConfig(batch_size=batch_size, max_steps=steps, save_every=10_000)
    device = prepare(HardwareConfig(device="cpu", dtype=options.dtype, matmul_precision=options.matmul_precision))
    examples = tuple(Example(tuple(ids), prompt, "", (), "") for ids, prompt in rows)
    source = DatasetSource(TokenDataset(examples), config, pad_id=0)
    sizes = [
        (sum(len(rows[at][0]) for at in step), sum(len(rows[at][0]) - rows[at][1] for at in step))
        for step in source.steps(0)
    ]
    with tempfile.TemporaryDirectory() as run:
        train(
            Training(
                student=_model(folder / "student"),
                teacher=_model(folder / "teacher"),
                loss=build_objective(options.objective),
                source=source,
                vocab=options.vocab,
                train=config,
                device=device,
                folder=Path(run),
                identity={},
                report=report,
                resume_command="",
            )
        )
    return marks, sizes


def _model(path: Path) -> LanguageModel:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    fuse_activations(model)  # as load_model does
    return LanguageModel(model, None, split_head(model), str(path), "", (0,), 0, model.config.vocab_size)
