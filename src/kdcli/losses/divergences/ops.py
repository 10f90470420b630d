"""Divergences between two softmaxes that keep their digits when the two are nearly equal.

Written out as ``sum p (log p - log q)``, a KL divergence of 1e-6 is lost in fp32: it is a sum of
terms of both signs, each rounded at 1e-7. With r = log(p / m), the same number is
``sum p phi(r)``, phi(r) = e^-r - 1 + r, whose terms are all at least 0.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdcli.shapes import Logits, TokenValues

EXCLUDED = -1e25
"""A logit or log-probability below this stands for minus infinity, see logits.FILTERED."""


def kl(log_p: Logits, log_q: Logits, tau: float = 1.0) -> TokenValues:
    """Return KL(p || q) of each token, never negative and exactly 0 for equal arguments.

    Both arguments may be log-probabilities or any logits: a constant a token drops out, and
    logits keep digits that ``log_softmax`` rounds away. Differentiable in both.

    Args:
        log_p: logits of the leading distribution, ``[t, v]``, finite (see ``logits.FILTERED``).
        log_q: logits of the other one, ``[t, v]``.
        tau: temperature by which both are divided.

    >>> p, q = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.6, 0.4]]).log()
    >>> round(kl(p, q).item(), 4), round(kl(q, p).item(), 4)
    (0.2263, 0.3112)
    """
    return kl_to_mixture(log_p, log_q, 0.0, tau)


def kl_to_mixture(log_p: Logits, log_q: Logits, share: float, tau: float = 1.0) -> TokenValues:
    """Return KL(p || m) of each token, with m = share p + (1 - share) q, as :func:`kl` does.

    Args:
        log_p: logits of the leading distribution, ``[t, v]``, finite (see ``logits.FILTERED``).
        log_q: logits of the other one, ``[t, v]``.
        share: p's share in the mixture, in [0, 1).
        tau: temperature by which both logits are divided.

    >>> p, q = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.6, 0.4]]).log()
    >>> round(kl_to_mixture(p, q, 0.5).item(), 4)
    0.0725
    """
    value: Tensor = _MixtureKL.apply(log_p, log_q, share, tau)
    return value


class Ratio(NamedTuple):
    """Two softmaxes and the logarithm of their ratio.

    Args:
        p: probabilities of the first, ``[t, v]``.
        q: probabilities of the second, ``[t, v]``.
        log: log(p / q), exact to a relative rounding, ``[t, v]``.
    """

    p: Tensor
    q: Tensor
    log: Tensor


def compare(log_p: Tensor, log_q: Tensor, tau: float = 1.0) -> Ratio:
    """Return both softmaxes and log(p / q); needs finite logits, takes no gradient.

    With d = (log_p - log_q) / tau centred by its mean under p, the normalisers differ by
    log(1 + sum p phi(d)); where that sum is large or overflows, by their plain difference.
    """
    p, q = softmax(log_p, tau), softmax(log_q, tau)
    gap = log_p - log_q
    if tau != 1.0:
        gap.div_(tau)
    return Ratio(p, q, log_ratio_of(p, q, gap, normaliser_gap(log_p, log_q, p, q, tau)))


def log_ratio_of(p: Tensor, q: Tensor, gap: Tensor, shift: Tensor) -> Tensor:
    """Return log(p / q), exact to a relative rounding, as :func:`compare` says; overwrites the gap.

    Args:
        p: probabilities, ``[t, v]``.
        q: the same of the other side, ``[t, v]``.
        gap: log_p - log_q at the temperature, ``[t, v]``.
        shift: the plain difference of the normalisers, ``[t, 1]``.
    """
    centre = (p * gap).sum(-1, keepdim=True)
    grown = _weighted_phi(p, gap - centre, q * torch.exp(centre - shift)).sum(-1, keepdim=True)
    return gap.sub_(torch.where(grown < 1.0, centre - torch.log1p(grown), shift))


def softmax(logits: Tensor, tau: float) -> Tensor:
    """Return the probabilities at a temperature."""
    return torch.softmax(logits if tau == 1.0 else logits / tau, dim=-1)


def normaliser_gap(log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor, tau: float) -> Tensor:
    """Return logsumexp(log_p / tau) - logsumexp(log_q / tau), ``[t, 1]``, given both softmaxes.

    The largest entries tell: log p = log_p / tau - logsumexp(log_p / tau) there.
    """
    top_gap = (log_p.amax(-1, keepdim=True) - log_q.amax(-1, keepdim=True)) / tau
    return top_gap - torch.log(p.amax(-1, keepdim=True) / q.amax(-1, keepdim=True))


def curvature(x: Tensor) -> Tensor:
    """Return phi(x) / x^2 = 1/2 - x/6 + x^2/24 - ... for |x| <= 1.

    >>> round(curvature(torch.tensor([0.5], dtype=torch.float64)).item(), 12)
    0.426122638851
    """
    one = x.new_ones(())
    inner = torch.ones_like(x)
    for order in range(19 if x.dtype == torch.float64 else 12, 2, -1):
        inner = torch.addcmul(one, inner, x, value=-1.0 / order, out=inner)
    return inner.mul_(0.5)


def _weighted_phi(p: Tensor, r: Tensor, mixed: Tensor) -> Tensor:
    """Return p phi(r), given mixed = p e^-r: by the series near 0, where the terms cancel."""
    near = r.abs() < 1.0
    small = torch.where(near, r, 0.0)
    return torch.where(near, curvature(small).mul_(small).mul_(small).mul_(p), (mixed - p).addcmul_(p, r))


class _MixtureKL(torch.autograd.Function):
    """KL(p || share p + (1 - share) q) over logits, with its gradients in closed form."""

    @staticmethod
    def forward(ctx: Any, log_p: Tensor, log_q: Tensor, share: float, tau: float) -> Tensor:
        ratio = compare(log_p, log_q, tau)
        p, q, _ = ratio
        r = log_ratio_to_mixture(ratio.log, share)
        value = _weighted_phi(p, r, torch.lerp(q, p, share)).sum(-1)
        ctx.share, ctx.tau = share, tau
        ctx.save_for_backward(p, q, r, value)
        if share > 0.0:
            return value
        lost = ((r * tau > -EXCLUDED) & (p > 0)).any(-1)
        return torch.where(lost, torch.inf, value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        p, q, r, value = ctx.saved_tensors
        upstream, share = grads[0].unsqueeze(-1) / ctx.tau, ctx.share
        to_p = to_q = None
        if ctx.needs_input_grad[1]:
            to_q = _slope_in_q(p, q, r, share).mul_(upstream * (share - 1.0))
        if ctx.needs_input_grad[0]:
            to_p = _slope_in_p(p, r, share, value).mul_(upstream)
        return to_p, to_q, None, None


def kl_of_ratio(ratio: Ratio, share: float) -> TokenValues:
    """Return KL(p || share p + (1 - share) q) of each token as a sum of terms that are all at least 0, ``[t]``.

    An error of the normalisers in log(p / q) enters by its square, or times the value.
    """
    r = log_ratio_to_mixture(ratio.log, share)
    return _weighted_phi(ratio.p, r, torch.lerp(ratio.q, ratio.p, share)).sum(-1)


def slopes_of_ratio(ratio: Ratio, share: float) -> tuple[Tensor, Tensor]:
    """Return the gradients of :func:`kl_of_ratio` over the logits of p and of q, ``[t, v]`` each; share above 0."""
    r = log_ratio_to_mixture(ratio.log, share)
    to_q = _slope_in_q(ratio.p, ratio.q, r, share).mul_(share - 1.0)
    return _slope_in_p(ratio.p, r, share, None), to_q


def _slope_in_p(p: Tensor, r: Tensor, share: float, value: Tensor | None) -> Tensor:
    """Return p (g - sum p g), g = r - share (e^r - 1); at share 0 the sum is the value."""
    slope = r if share == 0.0 else r - share * torch.expm1(r)
    if share == 0.0 and value is not None:
        return (slope - value.unsqueeze(-1)).mul_(p)
    mean = (p * slope).sum(-1, keepdim=True)
    return (slope - mean).mul_(p)


def _slope_in_q(p: Tensor, q: Tensor, r: Tensor, share: float) -> Tensor:
    """Return q p/m - q sum(q p/m); written with e^r - 1 = p/m - 1, which keeps its digits."""
    if share == 0.0:
        return torch.where(r.abs() < 1.0, q * torch.expm1(r.clamp(-1.0, 1.0)), p - q)
    lift = torch.expm1(r).mul_(q)
    return lift.addcmul_(q, lift.sum(-1, keepdim=True), value=-1.0)


def log_ratio_to_mixture(log_ratio: Tensor, share: float) -> Tensor:
    """Return log(p / m) = -log(share + (1 - share) q / p), given log(p / q)."""
    if share == 0.0:
        return log_ratio
    near = torch.log1p(torch.expm1(log_ratio.clamp(-1.0, 1.0).neg_()).mul_(1.0 - share))
    own = torch.full((), math.log(share), dtype=log_ratio.dtype, device=log_ratio.device)
    far = torch.logaddexp(math.log1p(-share) - log_ratio, own)
    return torch.where(log_ratio.abs() < 1.0, near, far).neg_()
