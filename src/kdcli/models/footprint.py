"""What a model will hold in memory, found by walking it through fake tensors: nothing is allocated."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from kdcli.models.activations import fuse_activations
from kdcli.models.folder import open_folder
from kdcli.models.internals import Conv1D
from kdcli.models.quiet import quiet
from kdcli.models.random import is_random, random_config
from kdcli.models.split import trunk_of
from kdcli.models.weights import build_config


@dataclass(frozen=True)
class Footprint:
    """Sizes of one model.

    Args:
        parameters: all of them, shared ones once.
        head: those of the head's matrix, whether or not it is shared with the embedding.
        tied: whether head and embedding are one matrix.
        largest: those of the largest tensor.
        linear: inputs and outputs of all linear layers below the head, added up; an adapter holds so many per rank.
        width: numbers in a hidden state.
        activations: bytes of the trunk's activations kept for the backward pass of one micro-batch.
    """

    parameters: int
    head: int
    tied: bool
    largest: int
    linear: int
    width: int
    activations: int

    @property
    def trunk(self) -> int:
        """Parameters that every token passes: all but embedding and head."""
        return max(self.parameters - (self.head if self.tied else 2 * self.head), 0)


@cache
def footprint(
    model: str, teacher: str | None, *, rows: int, length: int, keep: bool, autocast: torch.dtype | None = None
) -> Footprint:
    """Return a model's sizes.

    Args:
        model: folder, hub id or ``random:`` spec.
        teacher: folder or hub id that a random model takes its form from.
        rows: sequences of the largest micro-batch.
        length: its padded tokens per sequence.
        keep: whether activations are kept for a backward pass.
        autocast: dtype of the forward pass; None computes in fp32.

    Raises:
        KDError: the model cannot be used.
    """
    return sizes_of(_config(model, teacher), rows=rows, length=length, keep=keep, autocast=autocast)


def sizes_of(
    config: PreTrainedConfig, *, rows: int = 1, length: int = 1, keep: bool = False,
    autocast: torch.dtype | None = None,
) -> Footprint:  # fmt: skip
    """Return the sizes of the model that a config describes; see ``footprint`` for the arguments."""
    with FakeTensorMode(allow_non_fake_inputs=True), quiet():
        built = AutoModelForCausalLM.from_config(config, dtype=torch.float32).train(keep)
        fuse_activations(built)
        parameters, below = list(built.parameters()), list(trunk_of(built).modules())
        head, embedding = built.get_output_embeddings().weight, built.get_input_embeddings().weight
        return Footprint(
            parameters=sum(one.numel() for one in parameters),
            head=head.numel(),
            tied=head is embedding,
            largest=max(one.numel() for one in parameters),
            linear=sum(sum(one.weight.shape) for one in below if isinstance(one, nn.Linear | Conv1D)),
            width=int(head.shape[-1]),
            activations=_kept(built, rows, length, autocast) if keep else 0,
        )


def _config(model: str, teacher: str | None) -> PreTrainedConfig:
    if is_random(model):
        return random_config(model, str(teacher))
    checked = open_folder(model)
    return build_config(checked.settings, str(checked.folder))


def _kept(model: PreTrainedModel, rows: int, length: int, autocast: torch.dtype | None) -> int:
    """Return the bytes that autograd keeps of one pass through the trunk, parameters aside."""
    own = {one.untyped_storage()._cdata for one in model.parameters()}
    kept: dict[int, Tensor] = {}  # holds the tensors: a freed storage's address may come again

    def note(value: Tensor) -> Tensor:
        if value.untyped_storage()._cdata not in own:
            kept.setdefault(value.untyped_storage()._cdata, value)
        return value

    ids = torch.zeros((rows, length), dtype=torch.int64)
    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda value: value),
        torch.autocast("cpu", autocast, enabled=autocast is not None),
    ):
        trunk_of(model)(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    return sum(value.untyped_storage().nbytes() for value in kept.values())
