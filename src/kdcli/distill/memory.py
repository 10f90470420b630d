r"""Peak memory of each training process, part by part.

With P the parameters of the student, T those that are trained, N the processes, S the shards of a weight (N under
fsdp2 and zero3, 1 under ddp), R the parameters outside the layers, B those of the largest layer, and 4 bytes for a
number in fp32:

* throughout: weights :math:`4 P / S`, AdamW's two moments :math:`8 T / S`, weights of a live teacher, the buffers of
  logits; under ddp the buckets in which gradients are exchanged, :math:`4 T`; where zeros are kept, at most a byte for
  each weight of the student's linear layers, over S
* from a backward on: gradients :math:`4 T / S`
* in shards: R gathered from a micro-batch's forward to its backward; a layer in the forward as it runs, and once more
  in the buffer it was gathered into; in the backward four times: weights, the next layer's buffer, gradients, and
  the buffer in which the last layer's were reduced
* in bf16: the copies that autocast makes of the student's weights, whole in every process: 2 bytes each, kept with the
  activations, or until the forward's end if activations are recomputed

The moments of one micro-batch follow one another, so the peak is the largest of them, not their sum.
"""

import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdcli.models.sizes import Footprint

_FP32, _HALF = 4, 2
_NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a number in nf4: four bits, and per 64 numbers a scale of 8 bits that shares an fp32 one with 255 others."""

_WORKING = 0.5
"""Of what autograd would keep of a layer, the part that is alive at once while the layer runs without gradient."""

_GROWN = 0.1
"""Of what autograd keeps of a layer, what its backward takes beyond what it lets go of meanwhile."""

CONTEXT = 2**30
"""Bytes that CUDA, its libraries' kernels and NCCL take of a GPU before any tensor: assumed, not measured."""

MARGIN = 0.1
"""Share of the tensors' bytes that the allocator needs besides, for blocks it cannot use: an assumption as well."""


@dataclass(frozen=True)
class Setup:
    """How a pair is trained, as far as memory goes.

    Args:
        shard: ddp, fsdp2 or zero3.
        processes: how many train together.
        rows: sequences of the largest micro-batch of one process.
        length: its padded tokens per sequence.
        accumulates: whether a process runs several micro-batches per optimizer step.
        checkpointing: whether the student's activations are recomputed.
        half: whether the forward passes and head products run in bf16.
        vocab: entries of the logits.
        chunk: tokens whose logits exist at once.
        block: tokens that the objective's own passes see at once.
        pointwise: fp32 tensors of the size of a block's logits that the objective holds at once.
        rank: of a LoRA adapter; None trains all weights.
        quantization: of the teacher's linear layers below the head: none, int8 or nf4.
        remembered: whether a cache stands for the teacher, of which then the head alone is loaded.
        alone: whether a live teacher reads one sequence at a time, as on a CPU.
        lends: whether a teacher in shards is used outside the steps, too, and gathered whole for it.
        wide: whether head products of bf16 matrices are kept in fp32, their gradient in a buffer of its own.
        keep_zeros: whether the student's weights that are 0 stay 0.
    """

    shard: str
    processes: int
    rows: int
    length: int
    accumulates: bool
    checkpointing: bool
    half: bool
    vocab: int
    chunk: int
    block: int
    pointwise: float
    rank: int | None = None
    quantization: str = "none"
    remembered: bool = False
    alone: bool = False
    lends: bool = False
    wide: bool = False
    keep_zeros: bool = False

    @property
    def shards(self) -> int:
        """Number of shards of a weight."""
        return 1 if self.shard == "ddp" else self.processes

    @property
    def tokens(self) -> int:
        """Padded tokens of the largest micro-batch."""
        return self.rows * self.length


@dataclass(frozen=True)
class Peak:
    """The moment that takes most.

    Args:
        moment: what is going on then.
        parts: what takes memory, in bytes; they add up to the peak.
    """

    moment: str
    parts: dict[str, int]

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(self.parts.values())


def peak_of(student: Footprint, teacher: Footprint | None, setup: Setup) -> Peak:
    """Return the moment of a training that takes most memory of a process.

    Args:
        student: the student's sizes, activations those of the setup's micro-batch.
        teacher: the teacher's; None if it is not read.
        setup: how they are trained.
    """
    found = moments(student, teacher, setup)
    return max((Peak(name, dict(parts)) for name, parts in found.items()), key=lambda peak: peak.total)


def standing(student: Footprint, teacher: Footprint | None, setup: Setup) -> Mapping[str, int]:
    """Return what is there throughout a training: part -> bytes; arguments as for ``peak_of``."""
    return _Count(student, teacher, setup).standing()


def moments(student: Footprint, teacher: Footprint | None, setup: Setup) -> Mapping[str, Mapping[str, int]]:
    """Return what takes memory at each moment of a training: moment -> part -> bytes; arguments as for ``peak_of``."""
    count = _Count(student, teacher, setup)
    found = {
        "the student's forward": count.forward(),
        "head and loss": count.loss(),
        "the backward": count.backward(),
        "the end of the backward": count.end(),
    }
    if count.live:
        found["the teacher's forward"] = count.teaching()
    if setup.shards > 1:
        found["models gathered whole"] = count.gathering()
    return found


@dataclass(frozen=True)
class _Count:
    student: Footprint
    teacher: Footprint | None
    setup: Setup

    @property
    def trained(self) -> int:
        rank = self.setup.rank
        return self.student.parameters if rank is None else rank * self.student.linear

    @property
    def live(self) -> bool:
        return self.teacher is not None and not self.setup.remembered

    def standing(self) -> dict[str, int]:
        """Count what is there throughout."""
        setup, student = self.setup, self.student
        adapter = 0 if setup.rank is None else self.trained
        logits = (1 if self.teacher is None else 2) * (_HALF if setup.half and not setup.wide else _FP32)
        gradient = _HALF if setup.wide else 0
        parts = {
            "student's weights": (student.parameters + adapter) * _FP32 // setup.shards,
            "AdamW's moments": 2 * self.trained * _FP32 // setup.shards,
            "logits": (logits + gradient) * self.chunk * setup.vocab,
        }
        if setup.shard == "ddp" and setup.processes > 1:
            parts["buckets of gradients"] = self.trained * _FP32
        if setup.keep_zeros:
            parts["places of kept zeros"] = student.weights // setup.shards
        if self.teacher is not None:
            parts["teacher's weights"] = self._teacher_weights()
        if setup.accumulates:
            parts["gradients"] = self.trained * _FP32 // setup.shards
        return parts

    @property
    def chunk(self) -> int:
        return min(self.setup.chunk, self.setup.tokens)

    def _teacher_weights(self) -> int:
        teacher = self.teacher
        assert teacher is not None, "asked only of a run with a teacher"
        if self.setup.remembered:
            return teacher.head * _FP32
        rest = (teacher.parameters - teacher.weights) * _FP32
        kinds = {
            "int8": teacher.weights + teacher.rows * _FP32 + rest,
            "nf4": round(teacher.weights * _NF4) + rest,
        }
        return kinds.get(self.setup.quantization, teacher.parameters * _FP32) // self.setup.shards

    def _kept(self) -> dict[str, int]:
        """Count the student's activations after its forward."""
        student, setup = self.student, self.setup
        hidden = setup.tokens * student.width * _FP32
        kept = student.activations
        if setup.checkpointing:
            kept = student.layers * hidden + max(kept - student.layers * student.inner, 0)
        return {"activations": kept + hidden}

    def _copies(self, *, forward: bool) -> dict[str, int]:
        """Count autocast's copies of the student's weights, in the forward and after it."""
        cached = forward and self.setup.rank is None
        there = self.setup.half and (cached or not self.setup.checkpointing)
        return {"bf16 copies of the student's weights": _HALF * self.student.weights} if there else {}

    def _gathered(self, numbers: int) -> dict[str, int]:
        return {"gathered from the shards": numbers * _FP32} if self.setup.shards > 1 else {}

    def forward(self) -> dict[str, int]:
        """Count the start of the student's forward."""
        return {**self.standing(), **self._gathered(2 * self.student.outside + self.student.block)}

    def teaching(self) -> dict[str, int]:
        """Count the teacher's forward, behind the student's."""
        teacher, setup = self.teacher, self.setup
        assert teacher is not None, "asked only of a run with a teacher"
        own = self.student.outside + self.student.block
        theirs = teacher.outside + max(teacher.outside + teacher.block, 2 * teacher.block)
        plain = _HALF if setup.half else 0
        cast = teacher.matrix * (_FP32 if setup.quantization != "none" else plain)
        share = setup.rows if setup.alone else 1
        return {
            **self.standing(),
            **self._kept(),
            **self._copies(forward=True),
            **self._gathered(own + theirs),
            "teacher's forward": round(_WORKING * teacher.inner) // share + cast,
        }

    def gathering(self) -> dict[str, int]:
        """Count the whole models in addition to their shards: as used outside a step, and the student at the end."""
        theirs = self.teacher.parameters if self.teacher is not None and self.live and self.setup.lends else 0
        return {**self.standing(), **self._gathered(self.student.parameters + theirs)}

    def _hidden(self) -> int:
        """Count the packed hidden states of both sides, and the gradient over the student's."""
        theirs = 0 if self.teacher is None else self.teacher.width
        return self.setup.tokens * (2 * self.student.width + theirs) * _FP32

    def _head_gradient(self) -> int:
        return 0 if self.setup.rank is not None else self.student.head * _FP32

    def loss(self) -> dict[str, int]:
        """Count head and objective."""
        setup, student, teacher = self.setup, self.student, self.teacher
        block = min(setup.block, self.chunk)
        lent = teacher.outside if teacher is not None and self.live else 0
        parts = {
            **self.standing(),
            **self._kept(),
            **self._copies(forward=False),
            **self._gathered(student.outside + student.block + lent),
            "objective": round(setup.pointwise * block * setup.vocab * _FP32),
            "hidden states": self._hidden(),
            "head's gradient": self._head_gradient(),
        }
        if setup.half:
            heads = student.width + (0 if teacher is None else teacher.width)
            product = 0 if setup.rank is not None else student.head * _HALF
            parts["bf16 copies of the heads"] = setup.vocab * heads * _HALF + product
        return parts

    def backward(self) -> dict[str, int]:
        """Count the backward through the layers: its start, or layers on, with more gathered and less kept."""
        setup, student = self.setup, self.student
        lent = self.teacher.outside if self.teacher is not None and self.live and setup.shard == "fsdp2" else 0
        freed, again = student.inner, round(_GROWN * student.inner)
        if setup.checkpointing:
            layer = _HALF * student.weights // max(student.layers, 1) if setup.half else 0
            freed, again = 0, again + student.inner + layer
        copies = 4 if setup.rank is None else 2
        buffers, gone = max(
            ((share * student.block, (share - 2) * freed) for share in range(2, copies + 1)),
            key=lambda pair: pair[0] * _FP32 * (setup.shards > 1) - pair[1],
        )
        kept = self._kept()
        return {
            **self.standing(),
            "activations": max(kept["activations"] - gone, 0),
            **self._copies(forward=False),
            **self._gathered(student.outside + lent + buffers),
            "backward of one layer": again,
            "hidden states": setup.tokens * student.width * _FP32,
            "head's gradient": self._head_gradient(),
        }

    def end(self) -> dict[str, int]:
        """Count the end of the backward, when every gradient is there and no activation."""
        setup, student = self.setup, self.student
        twice = student.head * _FP32 if student.tied and setup.rank is None else 0
        lent = self.teacher.outside if self.teacher is not None and self.live and setup.shard == "fsdp2" else 0
        reduced = 2 * student.outside + student.block if setup.rank is None else student.outside
        return {
            **self.standing(),
            "gradients": self.trained * _FP32 // setup.shards,
            **self._gathered(reduced + lent),
            "head's gradient": twice,
        }


# Counts the bytes of the tensors that are alive while something runs.


class LiveBytes(TorchDispatchMode):
    """Inside its context, counts what operations allocate and free.

    What a single operation takes and returns within itself is not seen.

    Args:
        known: tensors that are there already and do not count.

    Attributes:
        now: bytes alive.
        peak: the most there were at once.

    >>> import torch
    >>> with LiveBytes([]) as live:
    ...     kept, dropped = torch.ones(4), torch.ones(2)
    ...     del dropped
    >>> live.now, live.peak
    (16, 24)
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen = weakref.WeakSet(one.untyped_storage() for one in known)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for value in tree_leaves(found):
            if isinstance(value, Tensor):
                self._note(value)
        return found

    def _note(self, value: Tensor) -> None:
        storage = value.untyped_storage()
        if storage in self._seen:
            return
        self._seen.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, size).atexit = False

    def _drop(self, size: int) -> None:
        self.now -= size
