"""The objectives as one would write them in plain PyTorch on full logits, for comparison."""

import torch
from torch import Tensor


def forward_kl(z: Tensor, t: Tensor) -> Tensor:
    lq, lp = z.log_softmax(-1), t.log_softmax(-1)
    return (lp.exp() * (lp - lq)).sum(-1)


def reverse_kl(z: Tensor, t: Tensor) -> Tensor:
    lq, lp = z.log_softmax(-1), t.log_softmax(-1)
    return (lq.exp() * (lq - lp)).sum(-1)


def jensen_shannon(z: Tensor, t: Tensor) -> Tensor:
    lq, lp = z.log_softmax(-1), t.log_softmax(-1)
    lm = torch.logaddexp(lp, lq) - 0.6931471805599453
    return 0.5 * (lp.exp() * (lp - lm)).sum(-1) + 0.5 * (lq.exp() * (lq - lm)).sum(-1)


def skew_forward_kl(z: Tensor, t: Tensor) -> Tensor:
    lq, lp = z.log_softmax(-1), t.log_softmax(-1)
    lm = torch.logaddexp(lp - 2.302585092994046, lq - 0.10536051565782628)
    return (lp.exp() * (lp - lm)).sum(-1)


def adaptive_kl(z: Tensor, t: Tensor, mu: float = 0.5) -> Tensor:
    lq, lp = z.log_softmax(-1), t.log_softmax(-1)
    p, q = lp.exp(), lq.exp()
    with torch.no_grad():
        ordered, index = p.sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered
        gap = (p - q).abs().gather(-1, index)
        head = (gap * (before < mu)).sum(-1)
        weight = head / gap.sum(-1)
    return weight * (p * (lp - lq)).sum(-1) + (1 - weight) * (q * (lq - lp)).sum(-1)


PLAIN = {
    "fkl": forward_kl,
    "rkl": reverse_kl,
    "jsd": jensen_shannon,
    "skl": skew_forward_kl,
    "akl": adaptive_kl,
}
