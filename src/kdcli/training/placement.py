"""Placement of parameters among processes: replicated or sharded."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal, TypeAlias

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from kdcli.models.load import LanguageModel
from kdcli.teachers.base import Teacher, live_models
from kdcli.training.step import DistillStep

Side: TypeAlias = Literal["student", "teacher"]
MakeStep: TypeAlias = Callable[[LanguageModel, Teacher | None], DistillStep]


class Placement(ABC):
    """How the loop calls a step, whatever lies where.

    Attributes:
        step: one micro-batch, from ids to the sum of losses.
        trained: the same without what exchanges gradients; its parameters are what the optimizer moves.
        model: the student in training.
        running: the models that run in a step, as they do there: the student, and each teacher that is alive.
        lockstep: whether all processes must run equally many micro-batches.
    """

    step: nn.Module
    trained: DistillStep
    model: PreTrainedModel
    running: list[PreTrainedModel]
    lockstep: bool

    @abstractmethod
    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        """Return what a micro-batch's forward and backward run in; gradients may wait for the last one."""

    @abstractmethod
    def gathered_params(self, sides: frozenset[Side]) -> AbstractContextManager[None]:
        """Return what to enter, in all processes, while any of them uses a model outside the step."""

    @abstractmethod
    def finish(self) -> None:
        """Leave the student whole, in all processes, for good."""

    @abstractmethod
    def close(self) -> None:
        """Release what exchanges gradients; no step is run any more."""


class Replicated(Placement):
    """Everything whole in every process: one process, or several under DDP.

    Args:
        accelerator: accelerate's view of the processes.
        make_step: makes the step of a student and a teacher.
        student: the model that learns.
        teacher: what it learns from.
    """

    lockstep = False

    def __init__(
        self, accelerator: Accelerator, make_step: MakeStep, student: LanguageModel, teacher: Teacher | None
    ) -> None:
        self._accelerator = accelerator
        self.model = student.model
        self.running = [model.model for model in (student, *live_models(teacher))]
        self.trained = make_step(student, teacher)
        self.step = accelerator.prepare_model(self.trained)

    @contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        """Exchange gradients after the last micro-batch only."""
        with nullcontext() if last else self._accelerator.no_sync(self.step):
            yield

    def gathered_params(self, sides: frozenset[Side]) -> AbstractContextManager[None]:
        """Return an empty context: every process has everything."""
        return nullcontext()

    def finish(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Release DDP.

        Its reducer must not be the last to hold the process group: it would join gloo's threads while it holds the
        interpreter's lock, and one of them may wait for that lock to release a tensor.
        """
        if self.step is not self.trained:
            self.step = self.trained
            self._accelerator.free_memory()


def together(value: Tensor) -> Tensor:
    """Return the whole of a tensor that may lie in shards; then all processes must ask."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def of_this_process(value: Tensor) -> Tensor:
    """Return what this process holds of a tensor that may lie in shards, in the same memory; without gradient."""
    return value.to_local() if isinstance(value, DTensor) else value


def like(value: Tensor, model: Tensor) -> Tensor:
    """Return a whole tensor the way another one lies: in shards, if that one does."""
    if isinstance(model, DTensor):
        on_device = value.to(model.device)
        return distribute_tensor(on_device, model.device_mesh, model.placements, src_data_rank=None)
    return value


def clip_gradients(model: nn.Module, bound: float) -> Tensor:
    """Scale the gradients down to a norm over all parameters, shards included, and return that norm before."""
    return together(nn.utils.clip_grad_norm_(model.parameters(), bound)).detach()


def nothing_on(device: torch.device, like_this: Tensor) -> Tensor:
    """Return an empty tensor on a device in another one's dtype."""
    return torch.empty(0, dtype=like_this.dtype, device=device)
