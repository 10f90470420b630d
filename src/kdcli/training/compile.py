"""Compiled layers of student and teacher inside training steps.

What a training step computes must follow from its batch alone, never from which batches came before: a run that
goes on after a kill sees others first. A compiler, however, writes its code for the sizes it sees first. So all code is
made before the first step, on made-up sequences that are always the same; whatever it does not cover is computed as
without a compiler, in every run.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from kdcli.data.batching import IGNORED, Batch
from kdcli.errors import MachineError
from kdcli.text import one_line
from kdcli.training.fsdp import blocks_of

BACKEND = "inductor"
_LENGTH = 12
_VERSIONS = 4096
"""Versions of one layer's code that may exist: by sizes that are 1, by masks, by layers and models that differ."""


class CompiledLayers:
    """The layers of some models, compiled one by one with dynamic sizes.

    Layers that share their code and their shapes share one compilation, and so do runs of one process. Where a layer
    is to be run again in the backward pass, its compiled code is.

    Args:
        models: whose layers; left as they are outside of :meth:`at_work`.

    Raises:
        MachineError: COMPILE-02, a model has no layers that are known as such.
    """

    def __init__(self, models: Sequence[PreTrainedModel]) -> None:
        self._layers: list[nn.Module] = []
        for model in models:
            layers = blocks_of(model)
            if not layers:
                raise _refuse(type(model).__name__, "its layers cannot be identified")
            self._layers.extend(layers)
        self._code = [
            torch.compile(layer.forward, backend=BACKEND, dynamic=True, fullgraph=True) for layer in self._layers
        ]

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Run the layers' compiled code where it covers a batch, and the layers themselves where it does not."""
        with torch.compiler.set_stance("eager_on_recompile"), self._in_place():
            yield

    def prepare(self, rehearse: Callable[[Batch], None], positions: int | None, device: torch.device) -> None:
        """Make all code before the first step.

        Args:
            rehearse: runs student and teacher over a batch, the student forward and backward, and forgets it.
            positions: longest sequence that both read; None where nothing bounds it.
            device: where they compute.

        Raises:
            MachineError: COMPILE-02, a layer cannot be compiled.
        """
        devices = [device] if device.type == "cuda" else []
        limits = torch._dynamo.config.patch(recompile_limit=_VERSIONS, accumulated_recompile_limit=_VERSIONS)
        try:
            with limits, torch.random.fork_rng(devices), warnings.catch_warnings(), self._in_place():
                warnings.simplefilter("ignore")
                for batch in dummy_batch(min(_LENGTH, positions or _LENGTH)):
                    rehearse(batch.to(device))
        except TorchDynamoException as error:
            names = " and ".join(sorted({type(layer).__name__ for layer in self._layers}))
            raise _refuse(names, one_line(" ".join(str(error).split()), 160)) from error

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        again = [layer for layer in self._layers if getattr(layer, "gradient_checkpointing", False)]
        for layer, code in zip(self._layers, self._code, strict=True):
            vars(layer)["forward"] = partial(checkpoint, code, use_reentrant=False) if layer in again else code
        for layer in again:
            vars(layer)["gradient_checkpointing"] = False
        try:
            yield
        finally:
            for layer in self._layers:
                del vars(layer)["forward"]
            for layer in again:
                vars(layer)["gradient_checkpointing"] = True


def _refuse(name: str, why: str) -> MachineError:
    fix = "leave hardware.compile out"
    return MachineError("COMPILE-02", f"{name} cannot be compiled: {why}", where="hardware.compile", fix=fix)


def dummy_batch(length: int) -> list[Batch]:
    """Return the batches that code is made for: one sequence and several, with padding and without.

    >>> [tuple(batch.input_ids.shape) for batch in dummy_batch(5)]
    [(2, 5), (2, 5), (1, 5), (1, 5)]
    """
    found = []
    for rows in (2, 1):
        for kept in (length, length // 2):
            ids = torch.arange(rows * length).reshape(rows, length) % 3
            mask = torch.ones_like(ids)
            mask[-1, kept:] = 0
            labels = torch.where(mask.bool(), ids, IGNORED)
            found.append(Batch(ids, mask, labels, torch.full((rows,), -1)))
    return found
