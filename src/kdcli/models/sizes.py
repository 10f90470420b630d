"""Memory that a model will take, from its config, by fake tensors."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from kdcli.errors import InputError
from kdcli.models.head import trunk_of
from kdcli.models.internals import Conv1D, layers_of
from kdcli.models.kernels import fuse_activations
from kdcli.models.skipping import leave_out, left_out_of
from kdcli.models.weights import silence_transformers
from kdcli.text import one_line

_WALKED = 2
_HALF = 2


@dataclass(frozen=True)
class Footprint:
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

    parameters: int
    head: int
    tied: bool
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
    def trunk(self) -> int:
        """Parameters that every token passes: all but embedding and head."""
        return max(self.parameters - (self.head if self.tied else 2 * self.head), 0)

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
    autocast: torch.dtype | None = None,
) -> Footprint:  # fmt: skip
    """Return the sizes of the model that a config describes.

    Args:
        config: of the model.
        rows: sequences of the largest micro-batch.
        length: its padded tokens per sequence.
        keep: whether activations are walked through; without, they count as nothing.
        autocast: dtype of the forward pass; None computes in fp32.
    """
    with torch.device("meta"), silence_transformers():
        built = AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()
    leave_out(built)
    fuse_activations(built)
    trunk = trunk_of(built)
    layers = list(layers_of(built, trunk) or ())
    linear = _linear(trunk)
    head, embedding = built.get_output_embeddings().weight, built.get_input_embeddings().weight
    blocks = [sum(one.numel() for one in layer.parameters()) for layer in layers]
    parameters = sum(one.numel() for one in built.parameters())
    kept = _kept(built, rows, length, autocast) if keep else Counter()
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


def _linear(module: nn.Module) -> list[tuple[Tensor, int]]:
    """Return weight and number of outputs of each linear layer."""
    return [
        (one.weight, one.weight.shape[int(isinstance(one, Conv1D))])
        for one in module.modules()
        if isinstance(one, nn.Linear | Conv1D)
    ]


def _shapes(layer: nn.Module) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((name, tuple(one.shape)) for name, one in layer.named_parameters())


def _kept(model: PreTrainedModel, rows: int, length: int, autocast: torch.dtype | None) -> Counter[int | None]:
    """Return the bytes that autograd keeps of one pass through the trunk, by layer; None is what lies outside them.

    Parameters and their copies in another dtype are not counted. Where all layers have the same shapes, two of them are
    walked through, and the others keep what the second does.

    Args:
        model: on the meta device; changed.
        rows: sequences.
        length: tokens of each.
        autocast: dtype of the pass; None for that of the parameters.
    """
    trunk = trunk_of(model)
    layers = layers_of(model, trunk)
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
            trunk(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    for index, layer in enumerate(layers or ()) if autocast is not None else ():
        found[index] -= _HALF * sum(weight.numel() for weight, _ in _linear(layer))
    walked = len(layers or ())
    for index in range(walked, count):
        found[index] = found[walked - 1]
    return found


# How much a model remembers of each token, read from its config alone.


_BOUNDED = ("sliding_attention", "chunked_attention")


@dataclass(frozen=True)
class CacheForm:
    """The shape of a key-value cache.

    Args:
        numbers: numbers that one layer keeps per token: keys and values of all its key-value heads.
        windows: for each layer with such a cache, the tokens it looks back at most; None for all of them.
        heads: query heads.
        head: numbers per head.
        fixed: layers that keep a state of fixed size instead; not counted.
    """

    numbers: int
    windows: tuple[int | None, ...]
    heads: int
    head: int
    fixed: int = 0

    def remembered(self, context: int) -> int:
        """Return the tokens that all layers together keep of a context.

        >>> CacheForm(2, (None, 4), 1, 1).remembered(10)
        14
        """
        return sum(context if window is None else min(window, context) for window in self.windows)

    def pairs(self, context: int) -> int:
        """Return how often, over all layers, a token of a context looks at a token: itself and those before it.

        >>> CacheForm(2, (None, 2), 1, 1).pairs(4)
        17
        """
        reach = [context if window is None else min(window, context) for window in self.windows]
        return sum(window * context - window * (window - 1) // 2 for window in reach)

    def elements(self, context: int) -> int:
        r"""Return the numbers kept of one sequence: :math:`\sum_{layers} \min(N, window) \cdot 2 h_{kv} d_{head}`.

        Args:
            context: tokens N of prompt and answer.

        >>> CacheForm(numbers=2 * 8 * 128, windows=(None,) * 32, heads=32, head=128).elements(4096)
        268435456
        """
        return self.numbers * self.remembered(context)


def cache_form(config: PreTrainedConfig, where: str) -> CacheForm:
    """Read the form of a model's key-value cache from its config.

    Grouped-query and multi-query attention keep fewer heads, sliding windows fewer tokens; latent
    attention (DeepSeek) keeps one compressed vector and the rotary part of the key.

    Args:
        config: of the language model.
        where: the model, for messages.

    Raises:
        InputError: EST-01, the config names no layers or no heads.
    """
    layers, heads = _count(config, "num_hidden_layers", where), _count(config, "num_attention_heads", where)
    head = getattr(config, "head_dim", None) or _count(config, "hidden_size", where) // heads
    without = set(left_out_of(config).attention)
    kinds = [kind for layer, kind in enumerate(_kinds(config, layers)) if layer not in without]
    layers -= len(without)
    window = {
        "sliding_attention": getattr(config, "sliding_window", None),
        "chunked_attention": getattr(config, "attention_chunk_size", None),
    }
    kept = [kind for kind in kinds if kind == "full_attention" or kind in _BOUNDED]
    latent = getattr(config, "kv_lora_rank", None)
    numbers = latent + config.qk_rope_head_dim if latent else 2 * _key_heads(config, heads) * head
    return CacheForm(numbers, tuple(window.get(kind) for kind in kept), heads, head, layers - len(kept))


def _kinds(config: Any, layers: int) -> list[str]:
    named = getattr(config, "layer_types", None)
    if named:
        return list(named)
    blocks = getattr(config, "layers_block_type", None)
    if blocks:
        return ["full_attention" if kind == "attention" else kind for kind in blocks]
    slides = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    return ["sliding_attention" if slides else "full_attention"] * layers


def _key_heads(config: Any, heads: int) -> int:
    """Return the heads that keys and values have; families name them in three ways."""
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        return 1
    return getattr(config, "num_key_value_heads", None) or getattr(config, "num_kv_heads", None) or heads


def _count(config: Any, name: str, where: str) -> int:
    value = getattr(config, name, None)
    if not isinstance(value, int) or value < 1:
        what = f"the config has no {name}: not a model with attention heads"
        raise InputError("EST-01", what, where=one_line(where), fix="give the config of a transformer")
    return value
