"""Whether a training fits into GPUs of a given memory, and which settings would make it fit."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from kdcli.distill.memory import CONTEXT, MARGIN, Setup, peak_of
from kdcli.models.sizes import Footprint

CACHE = "CACHE"
"""What stands in a line for a folder that ``kd cache`` is to make."""

_RANK = 16


@dataclass(frozen=True)
class Way:
    """Settings to add to a command line, and the bytes of a GPU that a training then takes.

    Args:
        flags: what to type.
        total: bytes, context and margin included.
    """

    flags: str
    total: int


@dataclass(frozen=True)
class _Change:
    flags: str
    effort: float
    setup: Setup


def needed(tensors: int) -> int:
    """Return the bytes of a GPU that a training takes, given those of its tensors at their peak.

    >>> needed(10 * 2**30) / 2**30
    12.0
    """
    return CONTEXT + round(tensors * (1 + MARGIN))


def way_to_fit(
    student: Footprint, teacher: Footprint | None, setup: Setup, memory: int, *, whole: bool = False,
    adapts: bool = True, keeps: bool = True,
) -> Way | None:  # fmt: skip
    """Return the settings that make a training fit; None where none of those tried does.

    Those that leave the numbers as they are, to rounding, come before those that change them, and few before many.

    Args:
        student: the student's sizes, at the setup's micro-batch.
        teacher: the teacher's; None if it is not read.
        setup: how they are trained.
        memory: bytes of a GPU.
        whole: whether the models cannot be cut into shards.
        adapts: whether a LoRA adapter may be trained in place of the weights.
        keeps: whether a cache may stand for the teacher.
    """
    changes: list[_Change] = [_Change("", 0.0, setup)]
    for options in (_checkpointing, _micro_batch, _chunk, _shards, _teacher, _adapter):
        grown: list[_Change] = []
        for change in changes:
            allowed = {"whole": whole, "adapts": adapts, "keeps": keeps and teacher is not None}
            found = list(options(change.setup, **allowed))
            grown += [change] + [_Change(f"{change.flags} {f}", change.effort + e, s) for f, e, s in found]
        changes = grown
    best: Way | None = None
    for _, group in itertools.groupby(sorted(changes, key=lambda one: one.effort), key=lambda one: one.effort):
        for change in group:
            total = _total(student, teacher, setup, change.setup)
            if total <= memory and (best is None or total < best.total):
                best = Way(change.flags.strip(), total)
        if best is not None:
            return best
    return None


def _total(student: Footprint, teacher: Footprint | None, given: Setup, setup: Setup) -> int:
    share = setup.rows / given.rows
    return needed(peak_of(_scaled(student, share), None if teacher is None else _scaled(teacher, share), setup).total)


def _scaled(sizes: Footprint, share: float) -> Footprint:
    return replace(sizes, activations=round(sizes.activations * share), inner=round(sizes.inner * share))


def _checkpointing(setup: Setup, **_: bool) -> Iterator[tuple[str, float, Setup]]:
    if not setup.checkpointing:
        yield "--gradient-checkpointing", 1.0, replace(setup, checkpointing=True)


def _micro_batch(setup: Setup, **_: bool) -> Iterator[tuple[str, float, Setup]]:
    for halved in itertools.count(1):
        rows = setup.rows >> halved
        if rows < 1:
            return
        flags = f"--set train.micro_tokens={rows * setup.length}"
        yield flags, 1.0 + halved / 10, replace(setup, rows=rows, accumulates=True)


def _chunk(setup: Setup, **_: bool) -> Iterator[tuple[str, float, Setup]]:
    now = min(setup.chunk, setup.tokens)
    for index, part in enumerate((4, 16)):
        chunk = max(now // part // 32 * 32, 32)
        if chunk < now:
            smaller = replace(setup, chunk=chunk, block=min(setup.block, chunk))
            yield f"--set train.chunk_tokens={chunk}", 1.0 + index / 10, smaller


def _shards(setup: Setup, *, whole: bool, **_: bool) -> Iterator[tuple[str, float, Setup]]:
    if setup.processes == 1 or whole or setup.quantization != "none":
        return
    names = ("ddp", "fsdp2", "zero3")
    for index, shard in enumerate(names[names.index(setup.shard) + 1 :]):
        yield f"--shard {shard}", 1.0 + index / 10, replace(setup, shard=shard)


def _teacher(setup: Setup, *, keeps: bool, **_: bool) -> Iterator[tuple[str, float, Setup]]:
    """Round the teacher's weights, or leave them out; the one changes the numbers, the other takes a pass before."""
    if not keeps or setup.remembered:
        return
    if setup.quantization == "none" and setup.shards == 1:
        for index, kind in enumerate(("int8", "nf4")):
            yield f"--set teacher_quantization={kind}", 10.0 + index, replace(setup, quantization=kind)
    yield f"--teacher-cache {CACHE}", 20.0, replace(setup, remembered=True)


def _adapter(setup: Setup, *, adapts: bool, **_: bool) -> Iterator[tuple[str, float, Setup]]:
    if adapts and setup.rank is None:
        yield f"--lora {_RANK}", 40.0, replace(setup, rank=_RANK)
