"""Sums over the rest of a sequence, for all sequences of a micro-batch at once; the host reads nothing."""

import torch
from torch import Tensor

from kdcli.losses.groups import Groups

_VARIANCE_FLOOR = 1e-8


def reward_to_go(rewards: Tensor, laid: Groups, gamma: float, factors: Tensor | None = None) -> Tensor:
    """Return U_t = r_t + gamma c_(t+1) U_(t+1), 0 after the last token of a sequence.

    Without factors that is the sum over t' >= t of gamma^(t' - t) r_t', whose discount counts from t, not from
    the beginning of the sequence.

    Args:
        rewards: ``[n]``.
        laid: the sequences, the tokens of one in their order.
        gamma: discount per step.
        factors: c, ``[n]``; None for 1.

    >>> reward_to_go(torch.tensor([1.0, 2.0, 4.0]), Groups.by(torch.tensor([0, 0, 0])), 0.5).tolist()
    [3.0, 4.0, 4.0]
    """
    carried = shifted(torch.full_like(rewards, gamma) if factors is None else gamma * factors, laid)
    return laid.unsorted(_recurred(laid.sorted(rewards), laid.sorted(carried)))


def _recurred(own: Tensor, carried: Tensor) -> Tensor:
    """Return U_t = own_t + carried_t U_(t+1), ``[n]``, each pass doubling how far ahead is looked.

    Where nothing is carried, a number ahead that is not finite does no harm: it is of another sequence.
    """
    step = 1
    while step < len(own):
        ahead, further = (torch.cat((side[step:], side.new_zeros(step))) for side in (own, carried))
        apart = carried == 0
        own = own + (carried * ahead).masked_fill(apart, 0.0)
        carried = (carried * further).masked_fill(apart, 0.0)
        step *= 2
    return own


def shifted(values: Tensor, laid: Groups) -> Tensor:
    """Return the next token's numbers, 0 after the last one of a sequence, ``[n]``.

    >>> shifted(torch.tensor([1.0, 2.0, 4.0]), Groups.by(torch.tensor([0, 0, 5]))).tolist()
    [2.0, 0.0, 0.0]
    """
    ahead = laid.sorted(values)
    ahead = torch.cat((ahead[1:], torch.zeros_like(ahead[:1])))
    return torch.where(laid.places + 1 < laid.sizes, laid.unsorted(ahead), 0.0)


def weights_before(log_weights: Tensor, laid: Groups) -> Tensor:
    """Return the product of all earlier tokens' weights in a sequence, 1 for the first one, ``[n]``.

    Args:
        log_weights: logarithms, ``[n]``.
        laid: the sequences.

    >>> weights_before(torch.tensor([2.0, 3.0, 5.0]).log(), Groups.by(torch.tensor([0, 0, 0]))).tolist()
    [1.0, 2.0, 6.0]
    """
    logs = laid.sorted(log_weights)
    first = laid.sorted(laid.places) == 0
    before = torch.where(first, 0.0, torch.cat((torch.zeros_like(logs[:1]), logs[:-1])))
    carried = (~first).to(logs.dtype)
    return laid.unsorted(_recurred(before.flip(0), carried.flip(0)).flip(0)).exp()


def whitened(values: Tensor, padding: int | Tensor = 0, among: Tensor | None = None) -> Tensor:
    """Return values less their mean, over their standard deviation.

    Args:
        values: ``[n]``.
        padding: so many zeros are counted among them.
        among: which of them are counted, ``[n]``; all without.

    >>> [round(value, 3) for value in whitened(torch.tensor([1.0, 3.0])).tolist()]
    [-1.0, 1.0]
    """
    counted = values if among is None else torch.where(among, values, 0.0)
    count = (len(values) if among is None else among.sum()) + padding
    mean = counted.sum() / count
    apart = (values - mean) ** 2
    total = (apart if among is None else torch.where(among, apart, 0.0)).sum()
    return (values - mean) * torch.rsqrt((total + padding * mean**2) / count + _VARIANCE_FLOOR)
