"""How far the logits of a row may be moved by the company it is read in."""

import torch
from transformers import PreTrainedModel

from kdcli.models.internals import position_bounds

_FINE = (torch.float32, torch.float64)


def differs_little(model: PreTrainedModel) -> bool:
    """Whether a row's logits in a batch are those of the row alone, but for sums of fp32 or finer in another order.

    They are not in bf16 or fp16, with four-bit weights, with matrix products below fp32, in a mixture of experts,
    where a rounding error may choose another expert, or where the longest row in the batch sets all rows' positions.
    """
    fine = all(parameter.dtype in _FINE for parameter in model.parameters())
    highest = torch.get_float32_matmul_precision() == "highest"
    return fine and highest and not has_experts(model) and not _stretches_positions(model)


def has_experts(model: PreTrainedModel) -> bool:
    """Whether tokens are sent to some of several experts; which of them share a product then follows from all."""
    return any(name.rpartition(".")[2] == "experts" for name, _ in model.named_modules())


def _stretches_positions(model: PreTrainedModel) -> bool:
    """Whether rotary positions are of two kinds, and the longest row of a forward pass says which all rows get."""
    return bool(position_bounds(model.config))
