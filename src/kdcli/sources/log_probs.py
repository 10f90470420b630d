"""How likely a model finds the tokens of one response."""

import torch
from torch import Tensor

from kdcli.data.examples import Example
from kdcli.losses.logits import log_softmax
from kdcli.models.load import LanguageModel

_ROWS = 256


@torch.no_grad()
def response_log_probs(model: LanguageModel, example: Example, ids: int) -> Tensor:
    """Return the log-probability of each response token at temperature 1, ``[n]`` in fp32, on the CPU.

    The sequence is read by itself, so that no number depends on others.

    Args:
        model: who judges; its mode is put back.
        example: prompt and response.
        ids: real ids; padding rows of the head have no probability.
    """
    training = model.model.training
    model.model.eval()
    try:
        tokens = torch.tensor([example.ids[:-1]], device=model.model.device)
        hidden = model.hidden(tokens, torch.ones_like(tokens))[0, example.prompt_length - 1 :]
        labels = torch.tensor(example.ids[example.prompt_length :], device=hidden.device)
        parts = [
            log_softmax(model.head.logits(hidden[at : at + _ROWS], ids).float()).gather(
                1, labels[at : at + _ROWS, None]
            )
            for at in range(0, len(labels), _ROWS)
        ]
    finally:
        model.model.train(training)
    return torch.cat(parts).squeeze(1).cpu()
