"""Student and teacher in shards over all processes: PyTorch's FSDP2 around one distillation step."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from transformers import PreTrainedModel

from kdcli.data.batching import Batch
from kdcli.models.head import trunk_of
from kdcli.models.internals import layers_of
from kdcli.models.load import LanguageModel
from kdcli.models.packing import Packing, Projection
from kdcli.teachers.base import Teacher
from kdcli.training.placement import MakeStep, Placement, Side, nothing_on, together


class Sharded(Placement):
    """Weights, gradients and moments cut into as many shards as there are processes.

    What runs in a step is a twin of each model, made of the same parameters before these are cut. A layer's
    weights are gathered when its turn comes and dropped after it; embeddings and head, which the chunked engine
    reads outside the model's own forward, belong to the step itself and stay gathered from a micro-batch's
    forward to its backward; or, as in ZeRO's third stage (Rajbhandari et al. 2020, section 5.3), they are dropped
    after the forward too and gathered again for the backward. The models as they were given stay empty, and are
    gathered while they are used whole: to generate, to evaluate, to save.

    Args:
        device: where this process computes.
        processes: how many there are.
        make_step: makes the step of a student and a teacher.
        student: the model that learns.
        teacher: what it learns from; one that runs is sharded too.
        keep: whether embeddings and head stay gathered between a micro-batch's forward and its backward.
    """

    lockstep = True

    def __init__(
        self,
        device: torch.device,
        processes: int,
        make_step: MakeStep,
        student: LanguageModel,
        teacher: Teacher | None,
        *,
        keep: bool = True,
    ) -> None:
        mesh = init_device_mesh(device.type, (processes,))
        twin = _twin(student, mesh)
        self._pairs: dict[Side, _Pair] = {"student": _Pair(student.model, twin.model, device)}
        self._teacher: ShardedTeacher | None = None
        if teacher is not None and (running := teacher.single) is not None:
            teacher_twin = _twin(running, mesh)
            self._pairs["teacher"] = _Pair(running.model, teacher_twin.model, device)
            teacher = self._teacher = ShardedTeacher(teacher_twin)
            fully_shard(teacher, mesh=mesh)
        self.model = twin.model
        self.running = [pair.shards for pair in self._pairs.values()]
        self.step = self.trained = make_step(twin, teacher)
        fully_shard(self.step, mesh=mesh, reshard_after_forward=not keep)
        register_fsdp_forward_method(self.step, "rehearse")
        if not keep:
            self.step.register_forward_hook(lambda *_: self._drop_teacher())
        for pair in self._pairs.values():
            pair.empty()

    @contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        """Reduce gradients to shards after every micro-batch, and drop what the teacher gathered."""
        yield
        self._drop_teacher()

    def _drop_teacher(self) -> None:
        if isinstance(self._teacher, FSDPModule):
            self._teacher.reshard()

    @contextmanager
    def gathered_params(self, sides: frozenset[Side]) -> Iterator[None]:
        """Gather models for use outside the step; all processes must enter."""
        pairs = [pair for side, pair in self._pairs.items() if side in sides]
        for pair in pairs:
            pair.fill()
        try:
            yield
        finally:
            for pair in pairs:
                pair.empty()

    def finish(self) -> None:
        """Gather the student for good."""
        self._pairs["student"].fill()

    def close(self) -> None:
        """Do nothing: no part of FSDP2 holds the process group but through Python."""


class ShardedTeacher(nn.Module, Teacher):
    """A teacher whose weights lie in shards; a micro-batch goes through it together, in every process at once.

    Args:
        model: the teacher, its blocks sharded.
    """

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.inner = model.model
        self._outside = (model,)

    @property
    def models(self) -> tuple[LanguageModel, ...]:
        """The one that runs."""
        return self._outside

    @torch.no_grad()
    def forward(self, batch: Batch, packing: Packing) -> Projection:
        """Run the trunk, gather the valid tokens' hidden states, and lend the head until the next reshard."""
        (model,) = self._outside
        hidden = model.hidden(batch.input_ids, batch.attention_mask)
        return Projection(packing.pack(hidden), model.current_head())

    def side(self, batch: Batch, packing: Packing) -> Projection:
        """Return its output at a micro-batch's valid tokens."""
        return self(batch, packing)


@dataclass(frozen=True)
class _Pair:
    """A model as it was given, and its twin in shards."""

    plain: PreTrainedModel
    shards: PreTrainedModel
    device: torch.device

    def empty(self) -> None:
        """Release the plain model's weights."""
        for parameter in self.plain.parameters():
            parameter.data = nothing_on(self.device, parameter)
        nn.Module.to(self.plain, self.device)

    @torch.no_grad()
    def fill(self) -> None:
        """Gather the plain model's weights from all processes."""
        own = dict(self.plain.named_parameters())
        for name, shard in self.shards.named_parameters():
            own[name].data = together(shard.detach())
        buffers = dict(self.plain.named_buffers())
        for name, buffer in self.shards.named_buffers():
            buffers[name].copy_(buffer)


def _twin(given: LanguageModel, mesh: DeviceMesh) -> LanguageModel:
    """Return a model of the same parameters and cut its blocks into shards."""
    shared = {id(parameter): parameter for parameter in given.model.parameters()}
    model = copy.deepcopy(given.model, shared)
    for block in blocks_of(model):
        fully_shard(block, mesh=mesh)
    return replace(given, model=model)


def blocks_of(model: PreTrainedModel) -> list[nn.Module]:
    """Return the layers that are gathered one at a time."""
    return [*(layers_of(model, trunk_of(model)) or ())]
