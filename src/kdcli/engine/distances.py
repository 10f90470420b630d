"""Two bounded distances between distributions, to full precision also where the two are nearly equal."""

import torch

from kdcli.losses.ops import compare, kl_to_mixture
from kdcli.shapes import Logits, TokenValues


def total_variation(log_p: Logits, log_q: Logits) -> TokenValues:
    """Return the total variation distance of each token, ``1/2 sum_v |p_v - q_v|``, from 0 to 1.

    Where p and q are close, ``|p - q| = p |exp(-r) - 1|`` with ``r = log(p / q)`` keeps the digits
    that the plain difference of two rounded probabilities loses. ``1 - TV`` is the probability that
    a token drafted from q is accepted by p in speculative sampling.

    Args:
        log_p: log-probabilities or logits, ``[t, v]``, finite (see ``losses.logits.FILTERED``).
        log_q: of the other distribution, ``[t, v]``.

    Reference: Leviathan et al. 2023, arXiv:2211.17192, lemma 3.3.

    >>> p, q = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.6, 0.4]]).log()
    >>> round(total_variation(p, q).item(), 4)
    0.3
    """
    p, q, log_ratio = compare(log_p, log_q)
    close = p * torch.expm1(log_ratio.clamp(-1.0, 1.0).neg_()).abs_()
    apart = torch.where(log_ratio.abs() < 1.0, close, (p - q).abs_())
    return apart.sum(-1).mul_(0.5).clamp_(max=1.0)


def jensen_shannon(log_p: Logits, log_q: Logits) -> TokenValues:
    """Return the Jensen-Shannon divergence of each token, ``1/2 KL(p || m) + 1/2 KL(q || m)``, from 0 to log 2.

    Args:
        log_p: log-probabilities or logits, ``[t, v]``, finite (see ``losses.logits.FILTERED``).
        log_q: of the other distribution, ``[t, v]``; m is the mean of the two.

    Reference: Lin 1991, Divergence measures based on the Shannon entropy, equation 3.1.

    >>> p, q = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.6, 0.4]]).log()
    >>> round(jensen_shannon(p, q).item(), 4)
    0.0633
    """
    return 0.5 * (kl_to_mixture(log_p, log_q, 0.5) + kl_to_mixture(log_q, log_p, 0.5))
