"""Closed-form gradients of the two parts of :mod:`kdcli.losses.target_split`."""

from dataclasses import replace

import torch
from torch import Tensor

from kdcli.losses.logits import FILTERED, widen
from kdcli.losses.ops import kl
from kdcli.losses.rows import host_may_read
from kdcli.losses.target_split import Parts, Split, Weighing, finite, parts

_SMALL = 1e-2
"""Below this a divergence summed in fp32 is taken again by the cancellation-free form."""


@torch.no_grad()
def parts_and_grad(
    student: Tensor, teacher: Tensor, labels: Tensor, weighing: Weighing, tau: float
) -> tuple[Parts, Tensor]:
    """Return the parts of each token, unweighted, and the gradient of their weighted sum.

    Args:
        student: logits, ``[t, v]``.
        teacher: logits, ``[t, v]``.
        labels: target ids, ``[t]``.
        weighing: weights and direction.
        tau: temperature of both sides.

    Returns:
        the parts, each ``[t]``, and the gradient over student logits, ``[t, v]``.
    """
    if not host_may_read():
        return _total(finite(student), finite(teacher), labels, weighing, tau)
    q, p = (_split(logits, labels, tau) for logits in (student, teacher))
    regular = torch.isfinite(p.target + p.mass + q.target + q.mass).squeeze(1)
    found, grad = _closed(p, q, labels[:, None], weighing)
    again = ~(regular & torch.isfinite(found.diversity))
    if again.any():
        redone, grad[again] = _by_autograd(student[again], teacher[again], labels[again], weighing.take(again), tau)
        found.target[again], found.diversity[again] = redone
    small = found.diversity < _SMALL
    if not _is_zero(weighing.diversity) and small.any():
        rows = finite(student[small], tau), finite(teacher[small], tau), labels[small]
        found.target[small], found.diversity[small] = parts(*rows, weighing)
    return found, grad if tau == 1.0 else grad.div_(tau)


def _total(student: Tensor, teacher: Tensor, labels: Tensor, weighing: Weighing, tau: float) -> tuple[Parts, Tensor]:
    """Return parts and gradient of finite logits, right for all tokens at once: none can be taken again."""
    found = parts(student / tau, teacher / tau, labels, weighing)
    q, p = (_split(logits, labels, tau) for logits in (student, teacher))
    if not _is_zero(weighing.diversity):
        empty = ((q if weighing.reverse else p).mass <= FILTERED / 2 / tau).squeeze(1)
        weighing = replace(weighing, diversity=torch.where(empty, 0.0, weighing.diversity))
    _, grad = _closed(p, q, labels[:, None], weighing)
    grad = torch.where(student <= FILTERED / 2, 0.0, grad)
    return found, grad if tau == 1.0 else grad.div_(tau)


def _split(logits: Tensor, labels: Tensor, tau: float) -> Split:
    """Split a copy of the logits; nothing is left of the target in the rest."""
    rest = widen(logits) / tau
    index = labels[:, None]
    target = rest.gather(1, index)
    rest.scatter_(1, index, -torch.inf)
    return Split(target, torch.logsumexp(rest, dim=1, keepdim=True), rest)


def _closed(p: Split, q: Split, index: Tensor, weighing: Weighing) -> tuple[Parts, Tensor]:
    """Return parts and gradient; overwrites both splits. Tokens with filtered logits come out as NaN."""
    leading, other = (q, p) if weighing.reverse else (p, q)
    target = kl(leading.pair, other.pair)
    step = _column(weighing.target) * (_log_odds_gap(p, q) if weighing.reverse else _target_excess(p, q))
    q_rest = torch.exp(q.rest - q.mass)
    if _is_zero(weighing.diversity):
        return Parts(target, torch.zeros_like(target)), q_rest.mul_(-step).scatter_(1, index, step)
    kept = leading.rest_probability if weighing.keep_mass else torch.ones_like(step)
    pull = kept * _column(weighing.diversity)
    gap = q.rest.sub_(q.mass).sub_(p.rest).add_(p.mass).scatter_(1, index, 0.0)
    if weighing.reverse:
        diversity = torch.linalg.vecdot(q_rest, gap)
        if weighing.keep_mass:
            step = step - pull * q.target_probability * diversity[:, None]
        grad = gap.sub_(diversity[:, None]).mul_(pull).sub_(step).mul_(q_rest)
    else:
        p_rest = p.rest.sub_(p.mass).exp_()
        diversity = -torch.linalg.vecdot(p_rest, gap)
        grad = q_rest.mul_(pull - step).sub_(p_rest.mul_(pull))
    return Parts(target, diversity * kept.squeeze(1)), grad.scatter_(1, index, step)


def _target_excess(p: Split, q: Split) -> Tensor:
    """Return ``q_g - p_g``, taken from the smaller of the masses on the target and off it."""
    on_target = q.target_probability - p.target_probability
    return torch.where(p.target > p.mass, p.rest_probability - q.rest_probability, on_target)


def _log_odds_gap(p: Split, q: Split) -> Tensor:
    """Return ``q_g (1 - q_g)`` times the student's log odds of the target over the teacher's."""
    return q.target_probability * q.rest_probability * ((q.target - q.mass) - (p.target - p.mass))


def _is_zero(weight: float | Tensor) -> bool:
    return not isinstance(weight, Tensor) and weight == 0


def _column(weight: float | Tensor) -> float | Tensor:
    return weight[:, None] if isinstance(weight, Tensor) else weight


def _by_autograd(
    student: Tensor, teacher: Tensor, labels: Tensor, weighing: Weighing, tau: float
) -> tuple[Parts, Tensor]:
    with torch.enable_grad():
        scaled = finite(student, tau).detach().requires_grad_()
        found = parts(scaled, finite(teacher, tau), labels, weighing)
        total = (weighing.target * found.target + weighing.diversity * found.diversity).sum()
        (grad,) = torch.autograd.grad(total, scaled)
    filtered = torch.isneginf(student)
    return Parts(found.target.detach(), found.diversity.detach()), grad.masked_fill_(filtered, 0.0)
