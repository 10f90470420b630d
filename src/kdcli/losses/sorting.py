"""Sorts probabilities in descending order, by the fastest method of the device."""

import numpy as np
import torch
from torch import Tensor

from kdcli.losses.rows import host_may_read
from kdcli.shapes import Logits


def sort_descending(values: Logits) -> Tensor:
    """Return each row from its largest entry to its smallest, ``[t, v]``; takes no gradient.

    Args:
        values: shape ``[t, v]``, none of them NaN.

    >>> sort_descending(torch.tensor([[0.2, 0.5, 0.3]]))[0].tolist() == torch.tensor([0.5, 0.3, 0.2]).tolist()
    True
    """
    if host_may_read() and values.dtype in (torch.float32, torch.float64):
        return torch.from_numpy(np.sort(values.detach().numpy(), axis=-1)).flip(-1)
    return torch.sort(values.detach(), dim=-1, descending=True).values


def order_descending(values: Logits) -> Tensor:
    """Return the places of each row's entries from the largest to the smallest, equal ones by rising place, ``[t, v]``.

    Where the host may read them, the bits of a number that is not negative and its place make one whole number to
    sort: on a CPU that is some ten times as quick as a stable sort with places.

    Args:
        values: shape ``[t, v]``, at least 0, none of them NaN.

    >>> order_descending(torch.tensor([[0.2, 0.4, 0.0, 0.4]])).tolist()
    [[1, 3, 0, 2]]
    """
    values = values.detach()
    if not (host_may_read() and values.dtype == torch.float32):
        return torch.sort(values, dim=-1, descending=True, stable=True).indices
    size = values.shape[-1]
    keys = values.contiguous().numpy().view(np.uint32).astype(np.uint64) << np.uint64(32)
    keys |= np.arange(size - 1, -1, -1, dtype=np.uint64)
    keys.sort(axis=-1)
    backwards = (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)
    return torch.from_numpy(size - 1 - backwards).flip(-1)


def largest(values: Logits, count: int) -> tuple[Tensor, Tensor]:
    """Return each row's largest entries in falling order, and their places; of equal ones those of the lowest places.

    ``torch.topk`` takes equal ones as it finds them, on each device in its own way.

    Args:
        values: shape ``[t, v]``.
        count: how many, at most v.

    Returns:
        values and places, each ``[t, count]``.

    >>> largest(torch.tensor([[0.0, 1.0, 1.0, 1.0]]), 2)[1].tolist()
    [[1, 2]]
    """
    if not host_may_read():
        best, places = torch.sort(values, dim=-1, descending=True, stable=True)
        return best[:, :count], places[:, :count]
    best, places = torch.topk(values, min(count + 1, values.shape[-1]), dim=-1)
    last = best[:, count - 1 : count]
    rows = torch.nonzero((best[:, count:] == last).any(-1)).squeeze(1)
    places = places[:, :count]
    if len(rows):
        above, tied = values[rows] > last[rows], values[rows] == last[rows]
        wanted = count - above.sum(-1, keepdim=True)
        taken = above | (tied & (tied.cumsum(-1) <= wanted))
        places[rows] = torch.nonzero(taken)[:, 1].view(len(rows), count)
    places = places.sort(-1).values
    best, order = torch.sort(values.gather(-1, places), dim=-1, descending=True, stable=True)
    return best, places.gather(-1, order)


_SLICE = 64


def first_marked(marked: Tensor, count: Tensor) -> Tensor:
    """Keep the marks of the lowest places of each row, ``[t, v]``; the host reads nothing.

    The slice of the row in which the last one lies is found first, so that no row is summed up place by place.

    Args:
        marked: which places, ``[t, v]``.
        count: how many marks to keep, whole numbers, ``[t, 1]``.

    >>> first_marked(torch.tensor([[True, False, True, True]]), torch.tensor([[2]])).tolist()
    [[True, False, True, False]]
    """
    size = marked.shape[-1]
    filled = torch.nn.functional.pad(marked.to(torch.int32), (0, -size % _SLICE)).unflatten(-1, (-1, _SLICE))
    held = filled.sum(-1)
    reached = held.cumsum(-1)
    slice_ = (reached < count).sum(-1, keepdim=True).clamp_max(held.shape[-1] - 1)
    inner = filled.gather(1, slice_.unsqueeze(-1).expand(-1, -1, _SLICE)).squeeze(1).cumsum(-1)
    wanted = count - (reached - held).gather(1, slice_)
    last = slice_ * _SLICE + (inner < wanted).sum(-1, keepdim=True)
    return marked & (torch.arange(size, device=marked.device) <= last) & (count > 0)
