"""``kd inspect batch``: values, gradient norms and cosines of several objectives on one batch."""

import dataclasses
import itertools
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdcli.config.schema import DistillConfig
from kdcli.data.batching import Batch
from kdcli.distill.prepare import Prepared, prepare_run
from kdcli.distill.setup import load_teacher
from kdcli.errors import UsageError
from kdcli.events import Event, Report
from kdcli.loading.session import Session
from kdcli.models.load import LanguageModel
from kdcli.models.packing import count_valid
from kdcli.plots import panels, plot_style, save
from kdcli.storage import atomic
from kdcli.teachers.base import Teacher
from kdcli.text import one_line
from kdcli.training.step import DistillStep

_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks|block|layer)\.(\d+)\.")


@dataclass(frozen=True)
class Gradients:
    """One objective on the batch.

    Args:
        label: the objective.
        value: per token, or per sequence with ``train.reduce=sequence``.
        parts: the same for each named part and for what the objective watches.
        norm: Euclidean norm of the gradient over all the student's parameters, before clipping.
        groups: the same for each group of parameters.
    """

    label: str
    value: float
    parts: dict[str, float]
    norm: float
    groups: dict[str, float]


@dataclass(frozen=True)
class BatchReport:
    """What one batch asks of the student under each objective.

    Args:
        student: the student.
        teacher: the teacher; None if no objective reads one.
        rows: where the rows of the batch come from.
        sequences: rows in the batch.
        tokens: response tokens in it.
        objectives: one entry each, in the order asked for.
        cosines: cosine between the gradients of each pair, ``[objectives, objectives]``; NaN where one is zero.
    """

    student: str
    teacher: str | None
    rows: str
    sequences: int
    tokens: int
    objectives: tuple[Gradients, ...]
    cosines: tuple[tuple[float, ...], ...]


def inspect_batch(config: DistillConfig, losses: Sequence[str], report: Report) -> BatchReport:
    """Take the gradient of each objective on the first batch of training, at the student's first weights.

    Model, batch, dropout and arithmetic are those of the first step that ``kd distill`` would make.

    Args:
        config: settings; ``train.batch_size`` rows are read, ``loss`` and ``output`` are ignored.
        losses: objectives, in canonical spelling.
        report: called with events.

    Raises:
        KDError: a mistake in the settings, found before weights are read.
    """
    session = Session()
    every = [prepare_run(config.model_copy(update={"loss": loss}), session) for loss in losses]
    _refuse_written(every)
    first = every[0]
    report(Event("note", first.device.description))
    student = session.load_student(first.pair, seed=config.train.seed, device=first.device.device, lora=config.lora)
    student.check_length(max(first.dataset.lengths))
    teacher = _teacher(every, session, report)
    window = first.windows(student.pad_id).window(0)
    tokens, sequences = count_valid(window)
    found, gradients = [], []
    for number, prepared in enumerate(every, start=1):
        report(Event("stage", prepared.label, done=number - 1, total=len(every)))
        denominator = tokens if config.train.reduce == "token" else sequences
        one, gradient = _gradient(prepared, student, teacher, window, max(denominator, 1))
        found.append(one)
        gradients.append(gradient)
    return BatchReport(
        student=str(config.student),
        teacher=config.teacher if teacher is not None else None,
        rows=str(config.data.train),
        sequences=sequences,
        tokens=tokens,
        objectives=tuple(found),
        cosines=_cosines(gradients),
    )


def _refuse_written(every: Sequence[Prepared]) -> None:
    """Refuse sources that write or measure before a step: the batch is to be the same for every objective."""
    for prepared in every:
        needs = prepared.source.needs()
        if needs.student or needs.teacher or not needs.offline:
            what = f"@{prepared.source.name} makes its own sequences; one batch is inspected under every objective"
            raise UsageError("CLI-22", what, where=prepared.label, fix="leave the source out")


def _teacher(every: Sequence[Prepared], session: Session, report: Report) -> Teacher | None:
    """Load the teacher if any of the objectives reads it."""
    for one in every:
        teacher = load_teacher(one, one.device, session, report)
        if teacher is not None:
            return teacher
    return None


def _gradient(
    prepared: Prepared, student: LanguageModel, teacher: Teacher | None, window: Sequence[Batch], denominator: int
) -> tuple[Gradients, dict[str, Tensor]]:
    train, device = prepared.train, prepared.device
    step = DistillStep(
        student, teacher, prepared.loss, vocab=prepared.pair.vocab, reduce=train.reduce, autocast=device.autocast,
        chunk_tokens=train.chunk_tokens,
    )  # fmt: skip
    student.model.train()
    student.model.zero_grad(set_to_none=True)
    value, parts = 0.0, {}
    for index, batch in enumerate(window):
        torch.manual_seed(_seed(train.seed, index))
        loss, sums = step(batch.to(device.device), denominator)
        loss.backward()
        value += loss.item()
        parts = {name: parts.get(name, 0.0) + part.item() for name, part in sums.items()}
    gradients = {
        name: parameter.grad.detach().float().cpu().clone()
        for name, parameter in student.model.named_parameters()
        if parameter.grad is not None
    }
    student.model.zero_grad(set_to_none=True)
    groups = _by_group(student.model, gradients)
    return Gradients(prepared.label, value, parts, math.sqrt(_dot(gradients, gradients)), groups), gradients


def _seed(seed: int, index: int) -> int:
    """Return what the first step of training seeds dropout with, for one of its micro-batches."""
    return int(np.random.SeedSequence((seed, 0, index, 0)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _by_group(model: nn.Module, gradients: dict[str, Tensor]) -> dict[str, float]:
    """Return the gradient's norm over embedding, each block, head, and the rest."""
    ends = {}
    for getter, name in (("get_output_embeddings", "head"), ("get_input_embeddings", "embedding")):
        module = getattr(model, getter, lambda: None)()
        if module is not None:
            ends[id(module.weight)] = "embedding and head (tied)" if id(module.weight) in ends else name
    sums: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        if name in gradients:
            block = _BLOCK.search(name)
            group = ends.get(id(parameter)) or (f"block {block[1]}" if block else "the rest")
            sums[group] = sums.get(group, 0.0) + gradients[name].double().square().sum().item()
    return {group: math.sqrt(total) for group, total in sums.items()}


def _cosines(gradients: Sequence[dict[str, Tensor]]) -> tuple[tuple[float, ...], ...]:
    count = len(gradients)
    table = np.full((count, count), np.nan)
    sizes = [math.sqrt(_dot(one, one)) for one in gradients]
    for first, second in itertools.product(range(count), repeat=2):
        if first > second:
            table[first, second] = table[second, first]
        elif sizes[first] > 0 and sizes[second] > 0:
            product = _dot(gradients[first], gradients[second]) / sizes[first] / sizes[second]
            table[first, second] = 1.0 if first == second else min(1.0, max(-1.0, product))
    return tuple(tuple(row) for row in table.tolist())


def _dot(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    return math.fsum(
        torch.dot(left[name].double().flatten(), right[name].double().flatten()).item()
        for name in left.keys() & right.keys()
    )


# An inspected batch on disk: ``batch.json``, and the cosines as a heat map.


def write_batch(folder: Path, found: BatchReport) -> None:
    """Write the numbers, and ``cosines.png`` and ``cosines.svg``.

    Raises:
        MachineError: the folder may not be written.
    """
    atomic.make_folder(folder)
    text = json.dumps(_finite(dataclasses.asdict(found)), indent=1, ensure_ascii=False, allow_nan=False)
    atomic.write_file(folder / "batch.json", text + "\n")
    draw_cosines(folder, found)


def draw_cosines(folder: Path, found: BatchReport) -> None:
    """Draw the cosine of each pair of gradients: 1 pulls the same way, 0 is unrelated, -1 undoes the other."""
    labels = [one_line(one.label, 24) for one in found.objectives]
    with plot_style():
        side = max(3.2, 0.75 * len(labels) + 1.6)
        figure, (ax,) = panels(1, width=side, height=side)
        ax.imshow(found.cosines, vmin=-1.0, vmax=1.0, cmap="RdBu")
        ax.set_xticks(range(len(labels)), labels, rotation=35, ha="right")
        ax.set_yticks(range(len(labels)), labels)
        ax.grid(visible=False)
        for row, line in enumerate(found.cosines):
            for column, value in enumerate(line):
                colour = "white" if abs(value) > 0.6 else "black"
                shown = "–" if math.isnan(value) else f"{value:.2f}"
                ax.text(column, row, shown, ha="center", va="center", color=colour)
        ax.set_title("cosine between gradients, one batch", loc="left")
        save(figure, folder, "cosines")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
