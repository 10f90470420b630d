"""What a teacher would say of the student's next token: label facts in expectation over the teacher's labels."""

import torch

from kdcli.shapes import Logits, TokenValues


def top1_by_teacher(log_p: Logits, log_q: Logits) -> TokenValues:
    """Return the teacher's probability of the student's likeliest token: how often it would be right.

    Args:
        log_p: the teacher's log-probabilities, ``[t, v]``.
        log_q: the student's, ``[t, v]``.

    >>> p, q = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.4, 0.6]]).log()
    >>> round(top1_by_teacher(p, q).item(), 4)
    0.1
    """
    return torch.gather(log_p, 1, log_q.argmax(dim=1, keepdim=True)).squeeze(1).exp()


def brier_by_teacher(log_p: Logits, log_q: Logits) -> TokenValues:
    """Return the student's expected Brier score, ``E_{y ~ p}[sum_v (q_v - 1[v = y])^2] = sum_v q_v (q_v - 2 p_v) + 1``.

    Args:
        log_p: the teacher's log-probabilities, ``[t, v]``.
        log_q: the student's, ``[t, v]``.

    >>> p, q = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.4, 0.6]]).log()
    >>> round(brier_by_teacher(p, q).item(), 4)
    0.68
    """
    q = log_q.exp()
    return q.sub(log_p.exp(), alpha=2.0).mul_(q).sum(1).add_(1.0)


def nll_by_teacher(log_p: Logits, log_q: Logits) -> TokenValues:
    """Return the student's expected negative log-likelihood, ``E_{y ~ p}[-log q_y]``, in nats.

    Args:
        log_p: the teacher's log-probabilities, ``[t, v]``.
        log_q: the student's, ``[t, v]``, finite.

    >>> p, q = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.4, 0.6]]).log()
    >>> round(nll_by_teacher(p, q).item(), 4)
    0.8757
    """
    return log_p.exp().mul_(log_q).sum(1).neg_()
