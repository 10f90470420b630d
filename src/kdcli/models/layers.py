"""Captures hidden states and attention maps of layers during a forward pass."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel

from kdcli.data.batching import Batch
from kdcli.data.images import ImageInputs
from kdcli.errors import InputError
from kdcli.losses.base import Inner, Layers, ModelShape
from kdcli.models.head import image_arguments, rows_by_positions, trunk_of, trunk_output
from kdcli.models.internals import attention_of, layers_of
from kdcli.models.load import LanguageModel
from kdcli.models.packing import Packing, Projection

_SUM_OF_A_ROW = 1e-3


@dataclass(frozen=True)
class CapturedLayers:
    """What one forward pass of a trunk showed.

    Args:
        last: what the head reads, ``[b s d]``.
        hidden: by layer, ``[b s d]``.
        attention: by layer, ``[b h s s]``.
    """

    last: Float[Tensor, "b s d"]
    hidden: Mapping[int, Tensor]
    attention: Mapping[int, Tensor]


def shape_of(config: PreTrainedConfig) -> ModelShape:
    """Return layers, width and heads that a config asks for."""
    text = config.get_text_config(decoder=True)
    return ModelShape(text.num_hidden_layers, text.hidden_size, text.num_attention_heads)


def capture_layers(
    model: PreTrainedModel,
    input_ids: Int[Tensor, "b s"],
    attention_mask: Int[Tensor, "b s"],
    layers: Layers,
    extra: Sequence[ImageInputs | None] = (),
) -> CapturedLayers:
    """Run a trunk once and keep the layers asked for.

    Args:
        model: a causal LM; for attention maps one that computes eager attention.
        input_ids: token ids ``[b s]``, padded on the right.
        attention_mask: 1 for tokens, 0 for padding.
        layers: which to keep; layer 0 of the hidden states is what the first block reads, layer l what block l
            gives, before any norm that follows the last one.
        extra: the images of each row; none for rows of text alone.
    """
    trunk = trunk_of(model)
    if rows_by_positions(trunk, attention_mask):
        raise _refuse(model, "the longest row of a batch chooses the positions of all, and these rows need several")
    with _kept(model, layers.hidden) as hidden:
        if not layers.attention:
            return CapturedLayers(trunk_output(trunk, input_ids, attention_mask, extra), hidden, {})
        given = image_arguments(trunk, extra, input_ids.shape[1])
        out: Any = trunk(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False, output_attentions=True, **given
        )
    return CapturedLayers(
        out.last_hidden_state, hidden, {layer: out.attentions[layer - 1] for layer in layers.attention}
    )


def blocks_of(model: PreTrainedModel) -> nn.ModuleList:
    """Return the blocks of a trunk, in order.

    Raises:
        InputError: MOD-24, there is no such list.
    """
    found = layers_of(model, trunk_of(model))
    if found is None:
        raise _refuse(model, f"no list of {shape_of(model.config).layers} blocks was found in it")
    return found


@contextmanager
def _kept(model: PreTrainedModel, wanted: frozenset[int]) -> Iterator[dict[int, Tensor]]:
    found: dict[int, Tensor] = {}
    blocks = blocks_of(model) if wanted else nn.ModuleList()

    def read(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found[0] = args[0] if args else kwargs["hidden_states"]

    def give(layer: int) -> Any:
        def keep(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            found[layer] = out[0] if isinstance(out, tuple) else out

        return keep

    hooks = [blocks[layer - 1].register_forward_hook(give(layer)) for layer in sorted(wanted) if layer]
    if 0 in wanted:
        hooks.append(blocks[0].register_forward_pre_hook(read, with_kwargs=True))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def eager_attention(model: PreTrainedModel, *, wanted: bool) -> Iterator[None]:
    """Let a model compute the attention that gives its maps if it is wanted, and put it back afterwards.

    Raises:
        InputError: MOD-24, the family does not support it.
    """
    if not wanted:
        yield
        return
    before = attention_of(model)
    use_eager(model)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def use_eager(model: PreTrainedModel) -> None:
    """Let a model compute the attention that gives its maps from now on.

    Raises:
        InputError: MOD-24, the family does not support it.
    """
    model.set_attn_implementation("eager")
    if attention_of(model) != "eager":
        raise _refuse(model, f"its attention ({attention_of(model)}) gives no maps")


def drop_no_attention(model: PreTrainedModel) -> None:
    """Switch attention dropout off: it would thin the maps that a loss sees."""
    for module in model.modules():
        for name in ("attention_dropout", "attn_dropout"):
            value = getattr(module, name, None)
            if isinstance(value, float):
                setattr(module, name, 0.0)
            elif isinstance(value, nn.Dropout):
                value.p = 0.0


@torch.no_grad()
def verify_layers(model: PreTrainedModel, layers: Layers, *, learns: bool) -> None:
    """Check on a small batch that what is collected are the model's own layers, and its own maps.

    Args:
        model: one that computes eager attention if maps are asked for.
        layers: those asked for.
        learns: whether it will be trained: then its maps are looked at in training mode.

    Raises:
        InputError: MOD-24, the family's layers cannot be collected.
    """
    ids = torch.arange(6, device=model.device).reshape(1, 6) % model.config.get_text_config(decoder=True).vocab_size
    training = model.training
    try:
        found = capture_layers(model.eval(), ids, torch.ones_like(ids), Layers(hidden=layers.hidden))
        out: Any = trunk_of(model)(input_ids=ids, use_cache=False, output_hidden_states=True)
        if found.hidden.keys() != layers.hidden:
            raise _refuse(model, "its blocks are not read in a pass over text")
        _check_hidden(model, found.hidden, out.hidden_states)
        if layers.attention:
            with torch.random.fork_rng():
                _check_attention(model.train(learns), ids)
    finally:
        model.train(training)


def _check_hidden(model: PreTrainedModel, found: Mapping[int, Tensor], told: tuple[Tensor, ...] | None) -> None:
    if told is None or len(told) != shape_of(model.config).layers + 1:
        raise _refuse(model, "it does not return its hidden states")
    for layer, value in found.items():
        # What transformers returns for the last layer has been through the final norm in most families.
        if layer < len(told) - 1 and not torch.allclose(value, told[layer], rtol=1e-4, atol=1e-5):
            raise _refuse(model, f"block {layer} does not give what the model returns for layer {layer}")


def _check_attention(model: PreTrainedModel, ids: Tensor) -> None:
    count = shape_of(model.config).layers
    out: Any = trunk_of(model)(input_ids=ids, use_cache=False, output_attentions=True)
    maps = out.attentions or ()
    if len(maps) != count or any(one is None or one.shape[-2:] != (ids.shape[1],) * 2 for one in maps):
        raise _refuse(model, f"it gives {len(maps)} attention maps for {count} layers")
    worst = max((one.float().sum(-1) - 1.0).abs().max().item() for one in maps)
    if worst > _SUM_OF_A_ROW:
        raise _refuse(model, f"rows of its attention maps miss a sum of 1 by {worst:.2g}: attention dropout or sinks")


def _refuse(model: PreTrainedModel, why: str) -> InputError:
    family = f"{type(model).__name__} ({model.config.model_type})"
    return InputError(
        "MOD-24", f"layers of {family} cannot be compared: {why}", fix="leave hidden and attention out of the objective"
    )


# The inside of a model at the tokens that count: hidden states and attention rows, packed.


@dataclass(frozen=True)
class LayerOutputs:
    """One model at the valid tokens of a micro-batch.

    Args:
        side: what its head reads, ``[n, d]``, and the head.
        inner: the layers asked for.
    """

    side: Projection
    inner: Inner


def layer_outputs(model: LanguageModel, batch: Batch, packing: Packing, layers: Layers) -> LayerOutputs:
    """Run a model's trunk once over a micro-batch and pack the layers asked for."""
    seen = capture_layers(model.model, batch.input_ids, batch.attention_mask, layers, batch.extra)
    hidden = {layer: packing.pack(value) for layer, value in seen.hidden.items()}
    rows = {layer: _rows(value, packing) for layer, value in seen.attention.items()}
    return LayerOutputs(Projection(packing.pack(seen.last), model.head), Inner(hidden, rows))


@torch.no_grad()
def teacher_layer_outputs(model: LanguageModel, batch: Batch, packing: Packing, layers: Layers) -> LayerOutputs:
    """Do the same without gradient; on a CPU one sequence at a time, so that none depends on its batch."""
    with eager_attention(model.model, wanted=bool(layers.attention)):
        return _look_at_teacher(model, batch, packing, layers)


def _look_at_teacher(model: LanguageModel, batch: Batch, packing: Packing, layers: Layers) -> LayerOutputs:
    if batch.input_ids.device.type != "cpu" or not packing.count:
        return layer_outputs(model, batch, packing, layers)
    valid = packing.mask(batch.input_ids.shape)
    alone = []
    for row, length in enumerate(batch.attention_mask.sum(dim=1).tolist()):
        span = slice(row, row + 1), slice(0, length)
        if valid[span].any():
            images = batch.extra[row : row + 1]
            seen = capture_layers(model.model, batch.input_ids[span], batch.attention_mask[span], layers, images)
            alone.append(_valid(seen, valid[span][0], batch.input_ids.shape[1]))
    hidden = {layer: torch.cat([one.hidden[layer] for one in alone]) for layer in layers.hidden}
    rows = {layer: torch.cat([one.attention[layer] for one in alone]) for layer in layers.attention}
    return LayerOutputs(Projection(torch.cat([one.last for one in alone]), model.head), Inner(hidden, rows))


@dataclass(frozen=True)
class _Alone:
    last: Tensor
    hidden: dict[int, Tensor]
    attention: dict[int, Tensor]


def _valid(seen: CapturedLayers, valid: Tensor, size: int) -> _Alone:
    maps = {layer: value[0, :, valid].transpose(0, 1) for layer, value in seen.attention.items()}
    padded = {layer: functional.pad(value, (0, size - value.shape[-1])) for layer, value in maps.items()}
    return _Alone(seen.last[0, valid], {layer: value[0, valid] for layer, value in seen.hidden.items()}, padded)


def _rows(maps: Tensor, packing: Packing) -> Tensor:
    """Gather the valid tokens' rows of ``[b h s s]`` maps, ``[n h s]``."""
    return maps.transpose(1, 2).flatten(0, 1).index_select(0, packing.positions)
