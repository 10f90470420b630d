"""The inside of a model at the tokens that count: hidden states and attention rows, packed."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from kdcli.data.collate import Batch
from kdcli.engine.pack import Packing
from kdcli.engine.projection import Projection
from kdcli.losses.layers import Inner, Layers
from kdcli.models.load import LanguageModel
from kdcli.models.observe import Observed, eager_attention, observe


@dataclass(frozen=True)
class Look:
    """One model at the valid tokens of a micro-batch.

    Args:
        side: what its head reads, ``[n, d]``, and the head.
        inner: the layers asked for.
    """

    side: Projection
    inner: Inner


def look(model: LanguageModel, batch: Batch, packing: Packing, layers: Layers) -> Look:
    """Run a model's trunk once over a micro-batch and pack the layers asked for."""
    seen = observe(model.model, batch.input_ids, batch.attention_mask, layers)
    hidden = {layer: packing.pack(value) for layer, value in seen.hidden.items()}
    rows = {layer: _rows(value, packing) for layer, value in seen.attention.items()}
    return Look(Projection(packing.pack(seen.last), model.head), Inner(hidden, rows))


@torch.no_grad()
def look_at_teacher(model: LanguageModel, batch: Batch, packing: Packing, layers: Layers) -> Look:
    """Do the same without gradient; on a CPU every sequence alone, so that none depends on its company."""
    with eager_attention(model.model, wanted=bool(layers.attention)):
        return _look_at_teacher(model, batch, packing, layers)


def _look_at_teacher(model: LanguageModel, batch: Batch, packing: Packing, layers: Layers) -> Look:
    if batch.input_ids.device.type != "cpu" or not packing.count:
        return look(model, batch, packing, layers)
    valid = packing.mask(batch.input_ids.shape)
    alone = []
    for row, length in enumerate(batch.attention_mask.sum(dim=1).tolist()):
        span = slice(row, row + 1), slice(0, length)
        if valid[span].any():
            seen = observe(model.model, batch.input_ids[span], batch.attention_mask[span], layers)
            alone.append(_valid(seen, valid[span][0], batch.input_ids.shape[1]))
    hidden = {layer: torch.cat([one.hidden[layer] for one in alone]) for layer in layers.hidden}
    rows = {layer: torch.cat([one.attention[layer] for one in alone]) for layer in layers.attention}
    return Look(Projection(torch.cat([one.last for one in alone]), model.head), Inner(hidden, rows))


@dataclass(frozen=True)
class _Alone:
    last: Tensor
    hidden: dict[int, Tensor]
    attention: dict[int, Tensor]


def _valid(seen: Observed, valid: Tensor, size: int) -> _Alone:
    maps = {layer: value[0, :, valid].transpose(0, 1) for layer, value in seen.attention.items()}
    padded = {layer: functional.pad(value, (0, size - value.shape[-1])) for layer, value in maps.items()}
    return _Alone(seen.last[0, valid], {layer: value[0, valid] for layer, value in seen.hidden.items()}, padded)


def _rows(maps: Tensor, packing: Packing) -> Tensor:
    """Gather the valid tokens' rows of ``[b h s s]`` maps, ``[n h s]``."""
    return maps.transpose(1, 2).flatten(0, 1).index_select(0, packing.positions)
