"""A teacher of which only the top k tokens are known: k tokens and one bin for the tail.

Both sides are summed up into these k + 1 bins. By the data-processing inequality no f-divergence of the
bins is larger than that of the whole distributions.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kdcli.losses.sorting import largest

_FLOOR = -1e30


@dataclass(frozen=True)
class TopKWithTail:
    """A teacher's view of some tokens.

    Args:
        ids: the likeliest tokens, shape ``[t, k]``.
        log_probs: their log-probabilities and, last, that of all other tokens together, shape ``[t, k + 1]``.
    """

    ids: Int[Tensor, "t k"]
    log_probs: Float[Tensor, "t b"]

    @property
    def whole(self) -> None:
        """None: single logits are not known."""
        return

    @property
    def bins(self) -> "TopKWithTail":
        """Itself."""
        return self

    def __getitem__(self, rows: slice | Tensor) -> "TopKWithTail":
        return TopKWithTail(self.ids[rows], self.log_probs[rows])

    def to(self, device: torch.device) -> "TopKWithTail":
        """Return the view on a device."""
        return TopKWithTail(self.ids.to(device, non_blocking=True), self.log_probs.to(device, non_blocking=True))


def top_k_with_tail(logits: Float[Tensor, "t v"], top_k: int) -> TopKWithTail:
    """Sum up a distribution into its likeliest tokens, of equal ones those of the lowest ids, and the rest.

    Args:
        logits: shape ``[t, v]``, fp32 or wider.
        top_k: tokens to keep; fewer than v.

    >>> view = top_k_with_tail(torch.tensor([[0.5, 0.2, 0.2, 0.1]]).log(), 2)
    >>> view.ids.tolist(), [round(value, 4) for value in view.log_probs.exp()[0].tolist()]
    ([[0, 1]], [0.5, 0.2, 0.3])
    """
    _, ids = largest(logits, top_k)
    return TopKWithTail(ids, bins_of(logits, ids))


def bins_of(logits: Float[Tensor, "t v"], ids: Int[Tensor, "t k"]) -> Float[Tensor, "t b"]:
    """Return the log-probabilities of some tokens and, last, of all others, ``[t, k + 1]``; no cancellation.

    Args:
        logits: shape ``[t, v]``, fp32 or wider.
        ids: the tokens, shape ``[t, k]``.
    """
    rest = torch.logsumexp(logits.scatter(1, ids, float("-inf")), dim=1, keepdim=True)
    bins = torch.cat((logits.gather(1, ids), rest), 1)
    return torch.log_softmax(bins, dim=1).clamp_min(_FLOOR)


def value_and_grad(
    divergence: Callable[[Tensor, Tensor], Tensor], student: Float[Tensor, "t v"], teacher: TopKWithTail
) -> tuple[Tensor, Tensor]:
    """Return a divergence between bins, ``[t]``, and its gradient over all student logits, ``[t, v]``.

    The divergence is differentiated on its k + 1 bins only; the chain rule carries that to the
    vocabulary: a token of the rest moves the rest's bin by its share in it.

    Args:
        divergence: of two log-probability vectors, ``[t, k + 1]`` each: student's, teacher's.
        student: logits, ``[t, v]``; used up.
        teacher: what is known of it.
    """
    bins = bins_of(student, teacher.ids)
    with torch.enable_grad():
        leaf = bins.clone().requires_grad_()
        value = divergence(leaf, teacher.log_probs.to(leaf.dtype))
        (slope,) = torch.autograd.grad(value.sum(), leaf)
    total, top, rest = slope.sum(1, keepdim=True), slope[:, :-1], slope[:, -1:]
    q = torch.softmax(student, dim=1)
    own = q.gather(1, teacher.ids)
    grad = q.mul_(rest / bins[:, -1:].exp().clamp_min(torch.finfo(q.dtype).tiny) - total)
    grad.scatter_(1, teacher.ids, top - own * total)
    return value.detach(), grad
