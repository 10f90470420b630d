"""``kd plan``: steps, tokens, cost and decoded examples of a run; nothing is written."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from kdcli import distributed
from kdcli.classifiers.model import classifier_footprint
from kdcli.classifiers.tiny import is_tiny
from kdcli.config.schema import DistillConfig
from kdcli.config.sections import HardwareConfig
from kdcli.data.batching import IGNORED, collate, micro_batches
from kdcli.data.tokenize import TokenDataset, decode_after
from kdcli.distill.gpu_memory import CACHE, needed, way_to_fit
from kdcli.distill.memory import CONTEXT, MARGIN, LiveBytes, Peak, Setup, peak_of, standing
from kdcli.distill.prepare import Prepared, prepare_run
from kdcli.distill.setup import share_met
from kdcli.errors import UsageError
from kdcli.loading.info import ModelPair
from kdcli.loading.session import Session
from kdcli.loading.splits import leaves_answers_out
from kdcli.losses.base import DistillLoss
from kdcli.losses.samples import sample, tokens_of, with_facts
from kdcli.metrics.describe import describe
from kdcli.models.block import block_gradient
from kdcli.models.devices import Device, memory_of, planned_device, process_bytes
from kdcli.models.execution import Execution, OnAccelerator, execution_on
from kdcli.models.head import Head
from kdcli.models.packing import Workspace
from kdcli.models.sizes import Footprint, together
from kdcli.storage.locate import model_of
from kdcli.storage.run_dir import RunFolder
from kdcli.students.made import footprint
from kdcli.students.supernet_spec import refuse_several_sizes
from kdcli.text import one_line, visible


@dataclass(frozen=True)
class Shown:
    """One decoded example of a plan.

    Args:
        where: file and line.
        segments: pieces of text in order, each with whether its tokens are learnt.
        tokens: length in tokens.
        targets: how many are learnt.
    """

    where: str
    segments: tuple[tuple[str, bool], ...]
    tokens: int
    targets: int


@dataclass(frozen=True)
class Fact:
    """One line of a plan.

    Args:
        text: in words.
        values: the same for programs; a name says the unit.
    """

    text: str
    values: dict[str, int | float | bool | str | list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What a command would do; nothing was written.

    Args:
        facts: name -> what is known, in reading order.
        cells: for a comparison, each cell's name and state: done, to resume, to run.
        examples: decoded training examples with the learnt part marked.
        notes: what was detected, cut and left out in the data.
        cost: cells, steps, flops, peak_bytes, seconds where it can be guessed, and gpu_bytes of gpu_memory where GPUs
            compute: estimates of all runs together.
    """

    facts: dict[str, Fact]
    cells: tuple[tuple[str, str], ...] = ()
    examples: tuple[Shown, ...] = ()
    notes: tuple[str, ...] = ()
    cost: dict[str, float] = field(default_factory=dict)


# Shows examples as the model meets them, with the part that is learnt set apart.


@dataclass(frozen=True)
class Preview:
    """One decoded example.

    Args:
        where: file and line.
        segments: pieces of text in order, each with whether its tokens are targets.
        tokens: length of the sequence in tokens.
        targets: how many of them are targets.
    """

    where: str
    segments: tuple[tuple[str, bool], ...]
    tokens: int
    targets: int


def preview(dataset: TokenDataset, tokenizer: PreTrainedTokenizerBase, count: int) -> list[Preview]:
    """Decode the first examples; the mask shown is read from a batch's labels.

    Args:
        dataset: tokenised rows.
        tokenizer: decodes them, special tokens included.
        count: how many examples.
    """
    return [_show(dataset, tokenizer, index) for index in range(min(count, len(dataset)))]


def _show(dataset: TokenDataset, tokenizer: PreTrainedTokenizerBase, index: int) -> Preview:
    example = dataset.examples[index]
    labels = collate(dataset.examples, [index], pad_id=0).labels[0].tolist()
    is_target = [False, *(label != IGNORED for label in labels)]
    segments, end = [], 0
    for target, run in groupby(is_target):
        start, end = end, end + len(list(run))
        segments.append(
            (visible(decode_after(tokenizer, example.ids[:start], example.ids[start:end], special=True)), target)
        )
    return Preview(example.where, tuple(segments), len(example.ids), sum(is_target))


# What a run will cost: peak memory, arithmetic, time; counted from the models' forms before any weight is read.


_TRIED = (32, 8192)
_MEASURED = 0.3
_EFFICIENCY = 0.5  # of the rate of one large product, for the small ones and what lies between


@dataclass(frozen=True)
class CostEstimate:
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


def estimate(prepared: Prepared) -> CostEstimate:
    """Estimate a run's cost, on this machine or on the GPUs it is planned for.

    Args:
        prepared: the run, checked.
    """
    rows, length, several = largest_micro_batch(prepared)
    pair, device = prepared.pair, prepared.device
    if prepared.dataset.with_images:
        what, fix = (
            "rows have images, and what an image encoder keeps is not known before it runs",
            "train without a plan",
        )
        raise UsageError("IMG-06", what, where="kd plan", fix=fix)
    if pair.classifies:
        return _estimate_of_classifier(prepared, rows, length, several=several)
    there = pair.teacher if pair.teacher is not None and pair.teacher.server is None else None
    named = [] if there is None else [model_of(one.path) for one in there.members or (there,)]
    student = footprint(
        pair.student if pair.student_is_made else model_of(pair.student), named[0] if named else None,
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
    return CostEstimate(peak, flops(prepared, student, teacher), rate, student, teacher, setup)


def _estimate_of_classifier(prepared: Prepared, rows: int, length: int, *, several: bool) -> CostEstimate:
    """Estimate the cost of training a classifier; what its teacher takes to read the rows once is not counted."""
    pair, device = prepared.pair, prepared.device
    path = pair.student if is_tiny(pair.student) else model_of(pair.student)
    student = classifier_footprint(path, pair.reader.labels or (), rows=rows, length=length, autocast=device.autocast)
    setup = setup_of(prepared, rows, length, several=several, execution=_execution(device, 0))
    peak = peak_of(student, None, setup)
    if process := process_bytes(device):
        peak = Peak(peak.moment, {"process": process, **peak.parts})
    rate = None if device.planned else matrix_rate(str(device.device), device.compute)
    return CostEstimate(peak, flops(prepared, student, None), rate, student, None, setup)


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
    device = prepared.device
    vocab = max(prepared.pair.vocab, prepared.pair.teacher_vocab or 0)
    space = Workspace(prepared.train.chunk_tokens, execution)
    chunk = space.chunk(vocab, device.device)
    half, many = device.autocast is not None, count(prepared.hardware)
    wide = half and execution.logits_dtype(torch.bfloat16) == torch.float32
    widened = (1 + prepared.loss.needs().teacher) if half and not wide else 0
    taken = execution.pass_bytes()
    return Setup(
        shard=prepared.hardware.shard,
        processes=many,
        rows=rows,
        length=length,
        accumulates=several,
        checkpointing=prepared.train.gradient_checkpointing,
        keep_zeros=prepared.train.keep_zeros,
        half=half,
        wide=wide,
        vocab=vocab,
        chunk=chunk,
        block=space.block(vocab, device.device, chunk),
        pointwise=pointwise(prepared.loss) + widened if taken is None else taken / 4,
        rank=prepared.lora.rank,
        quantization=prepared.quantization,
        remembered=prepared.teacher_cache is not None,
        alone=device.device.type == "cpu" and (many == 1 or prepared.hardware.shard == "ddp"),
        lends=prepared.source.needs().teacher
        or (prepared.validation is not None and prepared.validation.needs_teacher),
    )


def count(hardware: HardwareConfig) -> int:
    """Return how many processes train together, whoever starts them."""
    return max(hardware.gpus, distributed.world())


def pointwise(loss: DistillLoss) -> float:
    """Return how many fp32 tensors of the size of a block's logits an objective holds at once, tried on random ones.

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
    train, lengths = prepared.train, sorted(prepared.dataset.lengths, reverse=True)
    own = math.ceil(train.batch_size / count(prepared.hardware))
    cut = micro_batches(range(min(own, len(lengths))), lengths, train.micro_tokens)
    first = max(cut, key=lambda indexes: len(indexes) * max(lengths[index] for index in indexes))
    return len(first), max(lengths[index] for index in first), len(cut) > 1


def flops(prepared: Prepared, student: Footprint, teacher: Footprint | None) -> float:
    """Return the floating-point operations of training: 6 a parameter and token, 2 for the teacher.

    Heads see response tokens only.
    """
    data = prepared.dataset
    passes = prepared.steps * prepared.train.batch_size / len(data)
    seen, learnt = sum(data.lengths) * passes, data.targets * passes
    spent = 6.0 * (student.trunk * seen + student.head * learnt)
    read = seen if prepared.teacher_rows is None else sum(prepared.teacher_rows.lengths) * passes
    return spent + (2.0 * (teacher.trunk * read + teacher.head * learnt) if teacher is not None else 0.0)


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


_EXAMPLES = 3
_SAMPLED = 100


def plan_distill(config: DistillConfig, gpu_memory: int | None = None) -> Plan:
    """Check a run's settings and say what it would do.

    Args:
        config: its settings.
        gpu_memory: plan for GPUs of so many bytes, which need not be here, and neither need the models' weights;
            None plans for this machine.

    Raises:
        KDError: what training would stop at before its first step, weights aside.
    """
    refuse_several_sizes(config.student, "a plan knows the cost of one size alone")
    device = None if gpu_memory is None else planned_device(config.hardware, gpu_memory)
    prepared = prepare_run(config, Session(planning=device is not None), device)
    facts, cost = describe_run(prepared), estimate(prepared)
    facts |= cost_facts(cost) | gpu_facts(prepared, cost)
    if config.output is not None:
        state = str(folder_state(RunFolder(Path(config.output)), prepared))
        facts["run folder"] = Fact(f"{config.output} ({state})", {"folder": config.output, "state": state})
    notes = (*prepared.notes, *prepared.warnings)
    return Plan(
        facts, (), shown_examples(prepared), notes, cost_numbers([cost], prepared.steps) | _gpu_numbers(prepared, cost)
    )


def _gpu_numbers(prepared: Prepared, cost: CostEstimate) -> dict[str, float]:
    memory = memory_of(prepared.device)
    return {} if memory is None else {"gpu_bytes": float(needed(cost.peak_bytes)), "gpu_memory": float(memory)}


def cost_facts(cost: CostEstimate) -> dict[str, Fact]:
    """Return what one run will cost."""
    named = ", ".join(f"{name} {_mebibytes(value)}" for name, value in _sorted(cost) if value >= cost.peak_bytes / 100)
    each = f" in each of {cost.setup.processes} processes" if cost.setup.processes > 1 else ""
    parts = {f"{name.replace(' ', '_')}_bytes": value for name, value in _sorted(cost)}
    held = {"bytes": cost.peak_bytes, "processes": cost.setup.processes, "moment": cost.peak.moment, **parts}
    facts = {"peak memory": Fact(f"about {_mebibytes(cost.peak_bytes)}{each}, in {cost.peak.moment}: {named}", held)}
    done = f"{cost.flops:.3g} operations"
    if cost.rate is None or cost.seconds is None:
        unknown = f"{done}; what these GPUs do in a second is not known here"
        return facts | {"arithmetic": Fact(unknown, {"flops": cost.flops})}
    spent: dict[str, Any] = {"flops": cost.flops, "flops_per_second": cost.rate}
    guessed = f"about {duration(cost.seconds)}, an estimate from one matrix product"
    return facts | {
        "arithmetic": Fact(f"{done}; this machine does about {cost.rate:.2g} a second", spent),
        "training time": Fact(guessed, {"seconds": cost.seconds}),
    }


PART = "per GPU: "
"""What the name of a part of a GPU's memory begins with."""


def gpu_facts(prepared: Prepared, cost: CostEstimate) -> dict[str, Fact]:
    """Return what a run takes of each GPU, one part a line, whether it fits, and what would make it fit.

    Where gradients are checkpointed, it is said whether it would fit without.

    Empty where no GPU computes. No part of it was measured on a GPU.
    """
    memory = memory_of(prepared.device)
    if memory is None:
        return {}
    total = needed(cost.peak_bytes)
    fits = total <= memory
    said = f"about {_gibibytes(total)} of {_gibibytes(memory)}: {'it fits' if fits else 'too much'}"
    known: dict[str, Any] = {"bytes": total, "available_bytes": memory, "fits": fits}
    if cost.setup.checkpointing:
        whole = needed(peak_of(cost.student, cost.teacher, replace(cost.setup, checkpointing=False)).total)
        known |= {"bytes_without_gradient_checkpointing": whole, "fits_without_gradient_checkpointing": whole <= memory}
        judged = "it fits" if whole <= memory else "too much"
        said += f"; without gradient checkpointing, {_gibibytes(whole)}: {judged}"
    margin = total - CONTEXT - cost.peak_bytes
    facts = {"memory per GPU": Fact(said, known)}
    facts |= {f"{PART}{name}": Fact(_gibibytes(value), {"bytes": value}) for name, value in _sorted(cost) if value}
    facts[f"{PART}CUDA, NCCL"] = Fact(f"{_gibibytes(CONTEXT)}, assumed", {"bytes": CONTEXT})
    facts[f"{PART}the allocator's margin"] = Fact(f"{_gibibytes(margin)}, {MARGIN:.0%} assumed", {"bytes": margin})
    if not fits:
        facts["to make it fit"] = _way(prepared, cost, memory)
    loaded = (cost.student.parameters + (0 if cost.teacher is None else cost.teacher.parameters)) * 4
    main = loaded * cost.setup.processes
    read = f"about {_gibibytes(main)} while loading: every process reads fp32"
    return facts | {"main memory": Fact(read, {"bytes": main})}


def _way(prepared: Prepared, cost: CostEstimate, memory: int) -> Fact:
    blended = prepared.pair.teacher is not None and bool(prepared.pair.teacher.members)
    found = way_to_fit(
        cost.student, cost.teacher, cost.setup, memory,
        whole=blended or bool(prepared.loss.needs().features),
        adapts=not prepared.pair.student_is_random,
        keeps=prepared.source.needs().offline and not blended and not prepared.loss.needs().features,
    )  # fmt: skip
    if found is None:
        return Fact("nothing that was tried; take more GPUs or larger ones, or a smaller student")
    made = "; kd cache makes CACHE before" if CACHE in found.flags else ""
    said = f"add {found.flags} (then about {_gibibytes(found.total)}{made})"
    return Fact(said, {"flags": found.flags, "bytes": found.total})


def _sorted(cost: CostEstimate) -> list[tuple[str, int]]:
    return sorted(cost.peak.parts.items(), key=lambda part: -part[1])


def cost_numbers(costs: Sequence[CostEstimate], steps: int) -> dict[str, float]:
    """Return the same for programs.

    Args:
        costs: one estimate per run.
        steps: optimizer steps of one run.
    """
    seconds = [one.seconds for one in costs]
    return {
        "cells": float(len(costs)),
        "steps": float(steps * len(costs)),
        "flops": sum(one.flops for one in costs),
        "peak_bytes": float(max(one.peak_bytes for one in costs)),
    } | ({} if None in seconds else {"seconds": sum(one for one in seconds if one is not None)})


def duration(seconds: float) -> str:
    """Return a length of time in the unit that fits.

    >>> duration(0.5), duration(90.0), duration(7800.0)
    ('1 s', '2 min', '2 h 10 min')
    """
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"


def _gibibytes(size: int) -> str:
    """Return a size in GiB, with two digits behind the point below 10.

    >>> _gibibytes(2**29), _gibibytes(80 * 2**30)
    ('0.50 GiB', '80.0 GiB')
    """
    value = size / 2**30
    return f"{value:,.2f} GiB" if value < 9.995 else f"{value:,.1f} GiB"


def describe_run(prepared: Prepared) -> dict[str, Fact]:
    """Return the facts of a run in reading order."""
    data = prepared.dataset
    learnt, total = data.targets, sum(data.lengths)
    passes = prepared.steps / prepared.windows().steps_per_epoch
    facts = {
        "device": Fact(prepared.device.description, {"type": prepared.device.device.type}),
        "objective": Fact(f"{prepared.label}: {prepared.loss.formula}", {"objective": prepared.label}),
        "teacher": _model(prepared.pair, teacher=True),
        "student": _model(prepared.pair, teacher=False),
        **_entries(prepared.pair),
        "training rows": Fact(
            f"{len(data):,} rows, {total:,} tokens, {learnt:,} of them learnt ({learnt / total:.0%})",
            {"rows": len(data), "tokens": total, "learnt_tokens": learnt},
        ),
        "steps": Fact(
            f"{prepared.steps:,} of {prepared.train.batch_size} sequences ({passes:.1f} passes)",
            {"steps": prepared.steps, "sequences_per_step": prepared.train.batch_size, "passes": passes},
        ),
        "response tokens": Fact(f"about {round(learnt * passes):,} in all", {"tokens": round(learnt * passes)}),
    }
    if prepared.teacher_rows is not None:
        met, seen = share_met(prepared, _SAMPLED), min(_SAMPLED, len(data))
        said = f"{met:.1%} of the response tokens are aligned with the teacher's (first {seen} rows)"
        facts["alignment"] = Fact(said, {"share_of_tokens": met, "rows": seen})
    if prepared.test is not None:
        bare = leaves_answers_out(prepared.evaluation, prepared.test)
        names = [name for name in prepared.evaluation.metrics if not (bare and describe(name).input_kind == "texts")]
        known: dict[str, Any] = {"rows": len(prepared.test), "metrics": names}
        facts["held-out rows"] = Fact(f"{len(prepared.test):,} rows; {', '.join(names)}", known)
    return facts


def _entries(pair: ModelPair) -> dict[str, Fact]:
    """Return what there is to choose from: classes, or tokens."""
    if pair.reader.labels is not None:
        known: dict[str, Any] = {"classes": list(pair.reader.labels)}
        return {"classes": Fact(f"{pair.vocab}: {one_line(', '.join(pair.reader.labels), 200)}", known)}
    return {"vocabulary": _vocabulary(pair)}


def _vocabulary(pair: ModelPair) -> Fact:
    """Return how many tokens there are to choose from."""
    if pair.teacher_vocab is None:
        return Fact(f"{pair.vocab:,} real ids", {"tokens": pair.vocab})
    said = f"student {pair.vocab:,} real ids, teacher {pair.teacher_vocab:,} of its own"
    return Fact(said, {"tokens": pair.vocab, "teacher_tokens": pair.teacher_vocab})


class CellState(Enum):
    """How far a run is."""

    TO_RUN = "to run"
    TO_RESUME = "to resume"
    DONE = "done"
    REFUSED = "refused"


@dataclass(frozen=True)
class FolderState:
    """What is in a run folder.

    Args:
        state: how far the run is.
        step: of the newest checkpoint, where it is to be resumed.
        why: it cannot go on, where it is refused.

    >>> str(FolderState(CellState.TO_RESUME, 1000)), str(FolderState())
    ('to resume at step 1,000', 'to run')
    """

    state: CellState = CellState.TO_RUN
    step: int = 0
    why: str = ""

    def __str__(self) -> str:
        """Say it in a table."""
        resumed = f" at step {self.step:,}" if self.state is CellState.TO_RESUME else ""
        return self.why or f"{self.state.value}{resumed}"


def folder_state(folder: RunFolder, prepared: Prepared) -> FolderState:
    """Return what is in a run folder: nothing, a part of this run, or all of it.

    Raises:
        KDError: it holds something else.
    """
    if not folder.check(prepared.identity, resume=True):
        return FolderState()
    if folder.is_done:
        return FolderState(CellState.DONE)
    steps = sorted(path.name for path in folder.path.glob("checkpoint-*"))
    return FolderState(CellState.TO_RESUME, int(steps[-1].removeprefix("checkpoint-"))) if steps else FolderState()


def shown_examples(prepared: Prepared) -> tuple[Shown, ...]:
    """Return the first training examples, decoded."""
    if prepared.dataset.labels:
        rows = prepared.dataset.examples[:_EXAMPLES]
        return tuple(
            Shown(one.where, ((visible(f"{one.prompt} "), False), (visible(one.response), True)), len(one.ids), 1)
            for one in rows
        )
    return tuple(_shown(item) for item in preview(prepared.dataset, prepared.pair.reader.tokenizer, _EXAMPLES))


def _shown(item: Preview) -> Shown:
    return Shown(item.where, item.segments, item.tokens, item.targets)


def _model(pair: ModelPair, *, teacher: bool) -> Fact:
    if not teacher and pair.student_is_made:
        return Fact(pair.student, {"model": pair.student})
    facts = pair.teacher if teacher else pair.reader
    if facts is None:
        return Fact("none")
    known: dict[str, Any] = {"model": facts.path, "parameters": facts.parameters}
    return Fact(f"{facts.path}, {facts.parameters:,} parameters", known)
