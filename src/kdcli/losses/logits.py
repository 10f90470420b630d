"""Logits and log-probabilities in at least fp32, finite where a logit is minus infinity."""

import torch
from torch import Tensor

from kdcli.shapes import Logits

FILTERED = -1e30
"""Stands in for a logit of minus infinity: its probability is exactly 0 and its gradient is 0."""


def log_softmax(logits: Logits, tau: float = 1.0) -> Logits:
    """Log-probabilities at a temperature, at least in fp32, finite where a logit is minus infinity.

    >>> log_softmax(torch.tensor([[0.0, float("-inf")]])).tolist()
    [[0.0, -1.0000000150474662e+30]]
    """
    finite = finite_logits(logits)
    return torch.log_softmax(finite if tau == 1.0 else finite / tau, dim=-1)


def finite_logits(logits: Logits) -> Logits:
    """Logits in fp32 or wider, with FILTERED for minus infinity."""
    wide = widen(logits)
    return torch.where(torch.isneginf(wide), FILTERED, wide)


def widen(logits: Tensor) -> Tensor:
    """Logits in fp32, or in fp64 if they are."""
    return logits if logits.dtype == torch.float64 else logits.float()
