"""Log-probabilities that a model gives to the tokens of a sequence, read by itself."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from kdcli.models.load import LanguageModel
from kdcli.models.mode import evaluating

_AT_ONCE = 128
"""Tokens whose logits exist at once."""


@torch.no_grad()
def label_log_probs(
    model: LanguageModel, ids: Sequence[int], prompt_length: int, rows: int, autocast: torch.dtype | None = None
) -> Float[Tensor, " n"]:
    """Return log q(y_t) of every token behind a prompt, on the CPU, in fp32 or wider.

    The sequence is read alone and without dropout, so that the numbers depend on nothing else.

    Args:
        model: whose log-probabilities; its training mode is put back.
        ids: prompt and response.
        prompt_length: how many of them are prompt, at least 1.
        rows: real ids; the others have no probability.
        autocast: dtype of the forward pass; None for that of the weights.
    """
    device = model.model.device
    whole = torch.tensor([list(ids)], device=device)
    with evaluating(model.model), torch.autocast(device.type, autocast, enabled=autocast is not None):
        hidden = model.hidden(whole[:, :-1], torch.ones_like(whole[:, :-1]))[0, prompt_length - 1 :]
        labels = whole[0, prompt_length:, None]
        pieces = [
            _of_labels(model.head.logits(hidden[at : at + _AT_ONCE], rows), labels[at : at + _AT_ONCE])
            for at in range(0, len(hidden), _AT_ONCE)
        ]
    return torch.cat(pieces).cpu()


def _of_labels(logits: Tensor, labels: Tensor) -> Tensor:
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.log_softmax(wide, -1).gather(1, labels)[:, 0]
