"""What a run will cost: peak memory, arithmetic, time; counted from the models' forms before any weight is read."""

import math
import time
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

from kdcli import processes
from kdcli.config import HardwareConfig
from kdcli.data.order import micro_batches
from kdcli.engine.block import block_gradient
from kdcli.engine.devices import Device
from kdcli.engine.execution import Execution, OnAccelerator, execution_on
from kdcli.engine.workspace import Workspace
from kdcli.losses.base import DistillLoss
from kdcli.losses.trial import sample, tokens_of, with_facts
from kdcli.models.footprint import Footprint, footprint, together
from kdcli.models.split import Head
from kdcli.runs.folder import model_of
from kdcli.runs.live_bytes import LiveBytes
from kdcli.runs.memory import CONTEXT, Peak, Setup, peak_of, standing
from kdcli.runs.prepare import Prepared

_TRIED = (32, 8192)
_MEASURED = 0.3
_EFFICIENCY = 0.5  # of the rate of one large product, for the small ones and what lies between


@dataclass(frozen=True)
class Estimate:
    """The cost of one run.

    Args:
        peak: the moment of training that takes most memory of a process, part by part.
        flops: floating-point operations of training, over all processes.
        rate: operations per second this machine does in one large matrix product; None for GPUs that are not here.
        student: the student's sizes.
        teacher: the teacher's; None if it is not read.
        setup: how they are trained.
    """

    peak: Peak
    flops: float
    rate: float | None
    student: Footprint
    teacher: Footprint | None
    setup: Setup

    @property
    def peak_bytes(self) -> int:
        """Peak memory of one process in training."""
        return self.peak.total

    @property
    def seconds(self) -> float | None:
        """Time in training steps; a guess until something has been measured."""
        return None if self.rate is None else self.flops / (self.rate * _EFFICIENCY)


def estimate(prepared: Prepared) -> Estimate:
    """Estimate a run's cost, on this machine or on the GPUs it is planned for.

    Args:
        prepared: the run, checked.
    """
    rows, length, several = largest_micro_batch(prepared)
    pair, device = prepared.pair, prepared.device
    there = pair.teacher if pair.teacher is not None and pair.teacher.server is None else None
    named = [] if there is None else [model_of(one.path) for one in there.members or (there,)]
    student = footprint(
        pair.student if pair.student_is_random else model_of(pair.student), named[0] if named else None,
        rows=rows, length=length, keep=True, autocast=device.autocast,
    )  # fmt: skip
    teacher = None
    if prepared.needs_teacher and named:
        longest = length if prepared.teacher_rows is None else max(prepared.teacher_rows.lengths)
        sizes = [footprint(one, None, rows=rows, length=longest, keep=True, autocast=device.autocast) for one in named]
        teacher = together(sizes)
    setup = setup_of(prepared, rows, length, several=several, execution=_execution(device, 0))
    if device.planned is not None:
        loaded = sum(standing(student, teacher, replace(setup, chunk=0)).values())
        planned = _execution(device, device.planned - CONTEXT - loaded)
        setup = setup_of(prepared, rows, length, several=several, execution=planned)
    peak = peak_of(student, teacher, setup)
    if process := process_bytes(device):
        peak = Peak(peak.moment, {"process": process, **peak.parts})
    rate = None if device.planned else matrix_rate(str(device.device), device.compute)
    return Estimate(peak, flops(prepared, student, teacher), rate, student, teacher, setup)


def _execution(device: Device, free: int) -> Execution:
    if device.planned is None:
        return execution_on(device.device)
    return OnAccelerator(device.device, compiles=True, planned=free)


def setup_of(prepared: Prepared, rows: int, length: int, *, several: bool, execution: Execution) -> Setup:
    """Return what decides how much memory a run takes.

    Args:
        prepared: the run.
        rows: sequences of a process's largest micro-batch.
        length: its padded tokens per sequence.
        several: whether there are several per optimizer step.
        execution: how the chunked pass runs there.
    """
    config, device = prepared.config, prepared.device
    vocab = max(prepared.pair.vocab, prepared.pair.teacher_vocab or 0)
    space = Workspace(config.train.chunk_tokens, execution)
    chunk = space.chunk(vocab, device.device)
    half, many = device.autocast is not None, count(config.hardware)
    wide = half and execution.logits_dtype(torch.bfloat16) == torch.float32
    widened = (1 + prepared.loss.needs().teacher) if half and not wide else 0
    taken = execution.pass_bytes()
    return Setup(
        shard=config.hardware.shard,
        processes=many,
        rows=rows,
        length=length,
        accumulates=several,
        checkpointing=config.train.gradient_checkpointing,
        half=half,
        wide=wide,
        vocab=vocab,
        chunk=chunk,
        block=space.block(vocab, device.device, chunk),
        pointwise=pointwise(prepared.loss) + widened if taken is None else taken / 4,
        rank=config.lora.rank,
        quantization=config.teacher_quantization,
        remembered=config.teacher_cache is not None,
        alone=device.device.type == "cpu" and (many == 1 or config.hardware.shard == "ddp"),
        lends=prepared.source.needs().teacher or (prepared.watched is not None and prepared.watched.needs_teacher),
    )


def count(hardware: HardwareConfig) -> int:
    """Return how many processes train together, whoever starts them."""
    return max(hardware.gpus, processes.world())


def pointwise(loss: DistillLoss) -> float:
    """Return how many fp32 tensors of the size of a block's logits an objective holds at once, tried on made-up ones.

    The logits themselves are not counted.

    >>> from kdcli.losses.build import build_objective
    >>> round(pointwise(build_objective("fkl")), 1), round(pointwise(build_objective("jsd")), 1)
    (4.0, 5.0)
    """
    if not loss.needs().logits:
        return 0.0
    tokens, entries = _TRIED
    tok = tokens_of(loss, with_facts(loss, sample(loss, tokens=tokens, entries=entries)))
    known = [one for one in (tok.student, tok.teacher, tok.labels, *tok.facts.values()) if one is not None]
    with torch.no_grad(), LiveBytes(known) as live:
        block_gradient(loss, tok, Head(torch.zeros(1, 1)), wanted=True)
    return live.peak / (tokens * entries * tok.student.element_size())


def largest_micro_batch(prepared: Prepared) -> tuple[int, int, bool]:
    """Return sequences and padded length of a process's largest micro-batch, and whether it has several in a step."""
    train, lengths = prepared.config.train, sorted(prepared.dataset.lengths, reverse=True)
    own = math.ceil(train.batch_size / count(prepared.config.hardware))
    cut = micro_batches(range(min(own, len(lengths))), lengths, train.micro_tokens)
    first = max(cut, key=lambda indexes: len(indexes) * max(lengths[index] for index in indexes))
    return len(first), max(lengths[index] for index in first), len(cut) > 1


def flops(prepared: Prepared, student: Footprint, teacher: Footprint | None) -> float:
    """Return the floating-point operations of training: 6 a parameter and token, 2 for the teacher.

    Heads see response tokens only.
    """
    data, config = prepared.dataset, prepared.config
    passes = prepared.steps * config.train.batch_size / len(data)
    seen, learnt = sum(data.lengths) * passes, data.targets * passes
    spent = 6.0 * (student.trunk * seen + student.head * learnt)
    read = seen if prepared.teacher_rows is None else sum(prepared.teacher_rows.lengths) * passes
    return spent + (2.0 * (teacher.trunk * read + teacher.head * learnt) if teacher is not None else 0.0)


def process_bytes(device: Device) -> int:
    """Return what this process holds before any model: on a CPU the interpreter and its libraries, on a GPU nothing."""
    if device.device.type != "cpu":
        return 0
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    except OSError:
        return 0
    return 0


@cache
def matrix_rate(device: str, compute: torch.dtype) -> float:
    """Measure the operations per second of a large matrix product, for about a third of a second."""
    size = 1024 if device == "cpu" else 4096
    one = torch.ones((size, size), dtype=compute, device=device)
    out = torch.empty_like(one)
    torch.mm(one, one, out=out)
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < _MEASURED:
        torch.mm(one, one, out=out)
        if device == "cuda":
            torch.cuda.synchronize()
        done += 1
    return done * 2.0 * size**3 / (time.perf_counter() - started)
