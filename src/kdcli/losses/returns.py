"""Sums over the rest of a sequence, for all sequences of a micro-batch at once."""

import torch
from torch import Tensor

_VARIANCE_FLOOR = 1e-8


class Sequences:
    """The tokens of a micro-batch laid out one sequence a row, each from its left.

    Args:
        sequence: each token's sequence, shape ``[n]``; the tokens of one come in their order.

    >>> laid = Sequences(torch.tensor([0, 0, 0, 4, 4]))
    >>> laid.spread(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])).tolist()
    [[1.0, 2.0, 3.0], [4.0, 5.0, 0.0]]
    """

    def __init__(self, sequence: Tensor) -> None:
        _, self.row = torch.unique(sequence, return_inverse=True)
        order = torch.argsort(self.row, stable=True)
        lengths = torch.bincount(self.row)
        first = lengths.cumsum(0) - lengths
        self.place = torch.empty_like(order)
        self.place[order] = torch.arange(len(order), device=order.device) - first[self.row[order]]
        self.lengths = lengths
        self.shape = len(lengths), int(lengths.max()) if len(lengths) else 0

    def spread(self, values: Tensor, empty: float = 0.0) -> Tensor:
        """Lay one number per token out as ``[sequences, longest]``; places without a token hold ``empty``."""
        laid = values.new_full(self.shape, empty)
        laid[self.row, self.place] = values
        return laid

    def gather(self, laid: Tensor) -> Tensor:
        """Return the tokens' numbers from ``[sequences, longest]``, as ``[n]``."""
        return laid[self.row, self.place]

    def remaining(self) -> Tensor:
        """Return how many tokens each token's sequence still holds, itself included, ``[n]``."""
        return self.lengths[self.row] - self.place


def reward_to_go(rewards: Tensor, gamma: float, factors: Tensor | None = None) -> Tensor:
    """Return U_t = r_t + gamma c_(t+1) U_(t+1), by recurrence from the end.

    Without factors that is the sum over t' >= t of gamma^(t' - t) r_t', whose discount counts from t, not from
    the beginning of the sequence.

    Args:
        rewards: ``[sequences, longest]``, 0 where there is no token.
        gamma: discount per step.
        factors: c, of the same shape; None for 1.

    >>> reward_to_go(torch.tensor([[1.0, 2.0, 4.0]]), 0.5).tolist()
    [[3.0, 4.0, 4.0]]
    """
    found = torch.empty_like(rewards)
    carried = torch.zeros_like(rewards[:, 0]) if rewards.shape[1] else rewards.sum(1)
    for place in reversed(range(rewards.shape[1])):
        found[:, place] = rewards[:, place] + gamma * carried
        carried = found[:, place] if factors is None else factors[:, place] * found[:, place]
    return found


def shifted(laid: Tensor) -> Tensor:
    """Return the next token's numbers, 0 after the last one.

    >>> shifted(torch.tensor([[1.0, 2.0, 4.0]])).tolist()
    [[2.0, 4.0, 0.0]]
    """
    return torch.cat((laid[:, 1:], torch.zeros_like(laid[:, :1])), 1)


def weights_before(log_weights: Tensor) -> Tensor:
    """Return the product of all earlier tokens' weights, 1 for the first one.

    Args:
        log_weights: logarithms, ``[sequences, longest]``.

    >>> weights_before(torch.tensor([[2.0, 3.0, 5.0]]).log()).tolist()
    [[1.0, 2.0, 6.0]]
    """
    return torch.exp(log_weights.cumsum(1) - log_weights)


def whitened(values: Tensor, padding: int = 0) -> Tensor:
    """Return values less their mean, over their standard deviation.

    Args:
        values: ``[n]``.
        padding: so many zeros are counted among them.

    >>> [round(value, 3) for value in whitened(torch.tensor([1.0, 3.0])).tolist()]
    [-1.0, 1.0]
    """
    count = len(values) + padding
    mean = values.sum() / count
    variance = (((values - mean) ** 2).sum() + padding * mean**2) / count
    return (values - mean) * torch.rsqrt(variance + _VARIANCE_FLOOR)
