"""What a run will cost: peak memory, arithmetic, time; counted from the models' forms before any weight is read."""

import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from kdcli.data.order import micro_batches
from kdcli.engine.devices import Device
from kdcli.engine.workspace import Workspace
from kdcli.models.footprint import Footprint, footprint
from kdcli.runs.folder import model_of
from kdcli.runs.prepare import Prepared

_FP32 = 4
_POINTWISE = 8  # fp32 copies of one block of logits that a divergence and its gradient hold at once
_MEASURED = 0.3
_EFFICIENCY = 0.5  # of the rate of one large product, for the small ones and what lies between


@dataclass(frozen=True)
class Estimate:
    """The cost of one run.

    Args:
        memory: part -> bytes; they add up to the peak of training.
        flops: floating-point operations of training.
        rate: operations per second this machine does in one large matrix product.
    """

    memory: dict[str, int]
    flops: float
    rate: float

    @property
    def peak_bytes(self) -> int:
        """Peak memory in training."""
        return sum(self.memory.values())

    @property
    def seconds(self) -> float:
        """Time in training steps; a guess until something has been measured."""
        return self.flops / (self.rate * _EFFICIENCY)


def estimate(prepared: Prepared) -> Estimate:
    """Estimate a run's cost on this machine.

    Args:
        prepared: the run, checked.
    """
    rows, length = largest_micro_batch(prepared)
    pair, device = prepared.pair, prepared.device
    of = model_of(pair.teacher.path) if pair.teacher is not None and pair.teacher.server is None else None
    student = footprint(
        pair.student if pair.student_is_random else model_of(pair.student), of,
        rows=rows, length=length, keep=not prepared.config.train.gradient_checkpointing, autocast=device.autocast,
    )  # fmt: skip
    teacher = None
    if prepared.needs_teacher and of is not None:
        longest = length if prepared.teacher_rows is None else max(prepared.teacher_rows.lengths)
        teacher = footprint(of, None, rows=rows, length=longest, keep=False)
    memory = memory_parts(prepared, student, teacher, rows * length)
    return Estimate(memory, flops(prepared, student, teacher), matrix_rate(str(device.device), device.compute))


def largest_micro_batch(prepared: Prepared) -> tuple[int, int]:
    """Return sequences and padded length of the micro-batch that holds most tokens."""
    train, lengths = prepared.config.train, sorted(prepared.dataset.lengths, reverse=True)
    cut = micro_batches(range(min(train.batch_size, len(lengths))), lengths, train.micro_tokens)
    first = max(cut, key=lambda indexes: len(indexes) * max(lengths[index] for index in indexes))
    return len(first), max(lengths[index] for index in first)


def memory_parts(prepared: Prepared, student: Footprint, teacher: Footprint | None, tokens: int) -> dict[str, int]:
    """Return what takes memory at the peak of training, in bytes.

    Args:
        prepared: the run.
        student: the student's sizes.
        teacher: the teacher's; None if it is not read.
        tokens: padded tokens of the largest micro-batch.
    """
    device, vocab = prepared.device, max(prepared.pair.vocab, prepared.pair.teacher_vocab or 0)
    space = Workspace(prepared.config.train.chunk_tokens)
    chunk = min(space.chunk(vocab, device.device), tokens)
    block = min(space.block(vocab, device.device, chunk), chunk)
    width = torch.finfo(device.compute).bits // 8
    heads = 1 if teacher is None else 2
    rank = prepared.config.lora.rank
    adapter = (rank or 0) * student.linear
    trained = student.parameters if rank is None else adapter
    head = 0 if rank is not None else student.head * _FP32 * (2 if student.tied else 1)
    parts = {
        "process": process_bytes(device),
        "student's weights": (student.parameters + adapter) * _FP32,
        "gradients": trained * _FP32,
        "AdamW's moments": 2 * trained * _FP32,
        "activations": student.activations + 3 * tokens * student.width * _FP32,
        "logits": heads * chunk * vocab * width + _POINTWISE * block * vocab * _FP32,
        "head's gradient": head,
    }
    if teacher is not None:
        parts["teacher's weights"] = teacher.parameters * _FP32
    return parts


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
