"""Memory that a model will take, from its config, by fake tensors."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedConfig, PreTrainedModel

from kdcli.models.head import trunk_of
from kdcli.models.internals import Conv1D, layers_of
from kdcli.models.kernels import fuse_activations
from kdcli.models.known_sizes import Counts
from kdcli.models.skipping import leave_out
from kdcli.models.weights import CAUSAL, ModelKind, silence_transformers

_WALKED = 2
_HALF = 2


@dataclass(frozen=True)
class Footprint(Counts):
    """Sizes of one model.

    Args:
        parameters: all of them, shared ones once.
        head: those of the head's matrix, whether or not it is shared with the embedding.
        tied: whether head and embedding are one matrix.
        linear: inputs and outputs of all linear layers below the head, added up; an adapter holds so many per rank.
        rows: outputs of the same layers, added up; a weight rounded by rows has one scale for each.
        weights: numbers in the weights of the same layers.
        matrix: numbers in the largest of these weights.
        width: numbers in a hidden state.
        layers: how many there are; 0 where they cannot be identified.
        blocks: parameters of all layers.
        block: parameters of the largest layer.
        activations: bytes of the trunk's activations kept for the backward pass of one micro-batch.
        inner: those of the layer that keeps most.
    """

    linear: int
    rows: int
    weights: int
    matrix: int
    width: int
    layers: int
    blocks: int
    block: int
    activations: int
    inner: int

    @property
    def outside(self) -> int:
        """Parameters outside the layers: embeddings, last norm, head."""
        return self.parameters - self.blocks


def together(sizes: Sequence[Footprint]) -> Footprint:
    """Return the sizes of several models that run one after another as one."""
    first, *rest = sizes
    for one in rest:
        first = Footprint(
            parameters=first.parameters + one.parameters,
            head=first.head + one.head,
            tied=first.tied and one.tied,
            linear=first.linear + one.linear,
            rows=first.rows + one.rows,
            weights=first.weights + one.weights,
            matrix=max(first.matrix, one.matrix),
            width=first.width + one.width,
            layers=first.layers + one.layers,
            blocks=first.blocks + one.blocks,
            block=max(first.block, one.block),
            activations=first.activations + one.activations,
            inner=max(first.inner, one.inner),
        )
    return first


def sizes_of(
    config: PreTrainedConfig, *, rows: int = 1, length: int = 1, keep: bool = False,
    autocast: torch.dtype | None = None, kind: ModelKind = CAUSAL,
) -> Footprint:  # fmt: skip
    """Return the sizes of the model that a config describes; a classifier has no layers and no head of its own here.

    Args:
        config: of the model.
        rows: sequences of the largest micro-batch.
        length: its padded tokens per sequence.
        keep: whether activations are walked through; without, they count as nothing.
        autocast: dtype of the forward pass; None computes in fp32.
        kind: what the model is built as.
    """
    with torch.device("meta"), silence_transformers():
        built = kind.auto.from_config(config, dtype=torch.float32).train()
    if kind is not CAUSAL:
        return _whole_sizes(built, _kept(built, built, None, rows, length, autocast) if keep else Counter())
    leave_out(built)
    fuse_activations(built)
    trunk = trunk_of(built)
    layers = list(layers_of(built, trunk) or ())
    linear = _linear(trunk)
    head, embedding = built.get_output_embeddings().weight, built.get_input_embeddings().weight
    blocks = [sum(one.numel() for one in layer.parameters()) for layer in layers]
    parameters = sum(one.numel() for one in built.parameters())
    kept = _kept(built, trunk, layers_of(built, trunk), rows, length, autocast) if keep else Counter()
    return Footprint(
        parameters=parameters,
        head=head.numel(),
        tied=head is embedding,
        linear=sum(sum(weight.shape) for weight, _ in linear),
        rows=sum(rows for _, rows in linear),
        weights=sum(weight.numel() for weight, _ in linear),
        matrix=max((weight.numel() for weight, _ in linear), default=0),
        width=int(head.shape[-1]),
        layers=len(layers),
        blocks=sum(blocks),
        block=max(blocks, default=0),
        activations=sum(kept.values()),
        inner=max((size for layer, size in kept.items() if layer is not None), default=0),
    )


def _whole_sizes(built: PreTrainedModel, kept: Counter[int | None]) -> Footprint:
    """Return the sizes of a model that is not cut into layers and head."""
    embedding: Any = built.get_input_embeddings()
    head = embedding.weight
    return Footprint(
        parameters=sum(one.numel() for one in built.parameters()), head=head.numel(), tied=True, linear=0, rows=0,
        weights=0, matrix=0, width=int(head.shape[-1]), layers=0, blocks=0, block=0,
        activations=sum(kept.values()), inner=0,
    )  # fmt: skip


def _linear(module: nn.Module) -> list[tuple[Tensor, int]]:
    """Return weight and number of outputs of each linear layer."""
    return [
        (one.weight, one.weight.shape[int(isinstance(one, Conv1D))])
        for one in module.modules()
        if isinstance(one, nn.Linear | Conv1D)
    ]


def _shapes(layer: nn.Module) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((name, tuple(one.shape)) for name, one in layer.named_parameters())


def _kept(
    model: PreTrainedModel,
    trunk: nn.Module,
    layers: nn.ModuleList | None,
    rows: int,
    length: int,
    autocast: torch.dtype | None,
) -> Counter[int | None]:
    """Return the bytes that autograd keeps of one pass through the trunk, by layer; None is what lies outside them.

    Parameters and their copies in another dtype are not counted. Where all layers have the same shapes, two of them are
    walked through, and the others keep what the second does.

    Args:
        model: on the meta device; changed.
        trunk: what of it is run.
        layers: those of the trunk; None where it is walked through as a whole.
        rows: sequences.
        length: tokens of each.
        autocast: dtype of the pass; None for that of the parameters.
    """
    count = len(layers or ())
    if layers is not None and len({_shapes(layer) for layer in layers}) == 1:
        del layers[_WALKED:]
    found: Counter[int | None] = Counter()
    with FakeTensorMode(allow_non_fake_inputs=True), silence_transformers():
        model.to_empty(device="cpu")
        own = {one.untyped_storage()._cdata for one in model.parameters()}
        seen: dict[int, Tensor] = {}  # holds the tensors: a freed storage's address may come again
        place: list[int | None] = [None]

        def note(value: Tensor) -> Tensor:
            storage = value.untyped_storage()
            if storage._cdata not in own and storage._cdata not in seen:
                seen[storage._cdata] = value
                found[place[0]] += storage.nbytes()
            return value

        def enter(index: int | None, *_: object) -> None:
            place[0] = index

        for index, layer in enumerate(layers or ()):
            layer.register_forward_pre_hook(partial(enter, index))
            layer.register_forward_hook(lambda *_: enter(None))
        ids = torch.zeros((rows, length), dtype=torch.int64)
        with (
            torch.autograd.graph.saved_tensors_hooks(note, lambda value: value),
            torch.autocast("cpu", autocast, enabled=autocast is not None),
        ):
            options = {} if trunk is model else {"use_cache": False}
            trunk(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
    for index, layer in enumerate(layers or ()) if autocast is not None else ():
        found[index] -= _HALF * sum(weight.numel() for weight, _ in _linear(layer))
    walked = len(layers or ())
    for index in range(walked, count):
        found[index] = found[walked - 1]
    return found
