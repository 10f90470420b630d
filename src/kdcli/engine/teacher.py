"""What the engine asks of a teacher: hidden states of the tokens that count, and a head to read them."""

from typing import Protocol, runtime_checkable

import torch

from kdcli.data.collate import Batch
from kdcli.engine.pack import Packing
from kdcli.engine.projection import Projection
from kdcli.losses.coarse import Coarse
from kdcli.models.load import LanguageModel


@runtime_checkable
class Teacher(Protocol):
    """A teacher as the engine sees it, running or remembered."""

    def side(self, batch: Batch, packing: Packing) -> Projection | Coarse:
        """Return what it says of a micro-batch's valid tokens, without gradient.

        Hidden states and the head that reads them; or, of a compact cache, the likeliest tokens and the rest.
        """
        ...


class LiveTeacher:
    """A teacher that runs, under whatever autocast the caller is in.

    On a CPU every sequence goes through the trunk alone and without padding: its hidden states then
    depend on the sequence only, not on its company, so what was kept from an earlier pass equals a new
    pass bit for bit. On an accelerator the micro-batch stays together.

    Args:
        model: the teacher; no gradient is taken.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.model = model

    @torch.no_grad()
    def side(self, batch: Batch, packing: Packing) -> Projection:
        """Run the trunk and gather the valid tokens' hidden states."""
        if batch.input_ids.device.type != "cpu" or not packing.count:
            hidden = self.model.hidden(batch.input_ids, batch.attention_mask)
            return Projection(packing.pack(hidden), self.model.head)
        valid = packing.mask(batch.input_ids.shape)
        pieces = []
        for row, length in enumerate(batch.attention_mask.sum(dim=1).tolist()):
            span = slice(row, row + 1), slice(0, length)
            if valid[span].any():
                out = self.model.hidden(batch.input_ids[span], batch.attention_mask[span])
                pieces.append(out[valid[span]])
        return Projection(torch.cat(pieces), self.model.head)
