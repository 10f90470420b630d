"""Splits a distribution into its target and the rest, and the KL divergence with it.

With g the target, a distribution p becomes the pair ``(p_g, 1 - p_g)`` and the rest
``p^_j = p_j / (1 - p_g)`` over ``j != g``. The KL divergence is the sum of two parts::

    KL(p || q) = KL(pair p || pair q) + (1 - p_g) KL(p^ || q^)
                 '---- target ----'     '---- diversity ----'

Everything stays in log space: ``log(1 - p_g)`` is a log-sum-exp over the rest, so a model that
is certain of its target costs no precision.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from kdcli.losses.logits import FILTERED, finite_logits
from kdcli.losses.ops import kl
from kdcli.shapes import Logits, TokenLabels, TokenValues


class Split(NamedTuple):
    """One side's logits, split at the target; a constant a token drops out of everything.

    Args:
        target: the target's logit, ``[t, 1]``.
        mass: log-sum-exp of the other logits, ``[t, 1]``.
        rest: the logits, nothing left in the target's column, ``[t, v]``.
    """

    target: Tensor
    mass: Tensor
    rest: Tensor

    @property
    def pair(self) -> Tensor:
        """Logits of target and rest, ``[t, 2]``."""
        return torch.cat((self.target, self.mass), dim=1)

    @property
    def target_probability(self) -> Tensor:
        """p_g, ``[t, 1]``."""
        return torch.sigmoid(self.target - self.mass)

    @property
    def rest_probability(self) -> Tensor:
        """1 - p_g without cancellation, ``[t, 1]``."""
        return torch.sigmoid(self.mass - self.target)


class Parts(NamedTuple):
    """The two parts of a KL divergence, each ``[t]``."""

    target: Tensor
    diversity: Tensor


@dataclass(frozen=True)
class Weighing:
    """How the two parts enter a loss.

    Args:
        target: weight of the target part, a number or one per token, ``[t]``.
        diversity: weight of the diversity part, likewise.
        reverse: the student leads: KL(q || p) in place of KL(p || q).
        keep_mass: the diversity part is multiplied by the leading side's mass off the target.
    """

    target: float | Tensor
    diversity: float | Tensor
    reverse: bool = False
    keep_mass: bool = False

    def take(self, rows: Tensor) -> "Weighing":
        """Return the weighing of some of the tokens."""
        target, diversity = (w[rows] if isinstance(w, Tensor) else w for w in (self.target, self.diversity))
        return replace(self, target=target, diversity=diversity)


def finite(logits: Logits, tau: float = 1.0) -> Logits:
    """Return the logits over tau, at least in fp32, minus infinity replaced by a finite floor."""
    wide = finite_logits(logits)
    return wide if tau == 1.0 else wide / tau


def split_at(logits: Logits, labels: TokenLabels) -> Split:
    """Split finite logits at the targets; differentiable.

    >>> split = split_at(torch.tensor([[110.0, 0.0, 0.0]]), torch.tensor([0]))
    >>> round((split.mass - torch.tensor([[110.0, 0.0, 0.0]]).logsumexp(1)).item(), 4)
    -109.3069
    """
    index = labels[:, None]
    rest = logits.scatter(1, index, FILTERED)
    return Split(logits.gather(1, index), torch.logsumexp(rest, dim=1, keepdim=True), rest)


def log_uncertainty(logits: Logits, labels: TokenLabels) -> TokenValues:
    """Return log(1 - p_g) of each token, g its target.

    >>> round(log_uncertainty(torch.tensor([[2.0, 1, 0, -1, -2]]), torch.tensor([0])).exp().item(), 4)
    0.3636
    """
    split = split_at(finite(logits), labels)
    return torch.nn.functional.logsigmoid(split.mass - split.target).squeeze(1)


def parts(student: Logits, teacher: Logits, labels: TokenLabels, weighing: Weighing) -> Parts:
    """Return the two parts of each token, unweighted and differentiable.

    Args:
        student: finite logits, ``[t, v]``.
        teacher: finite logits, ``[t, v]``.
        labels: target ids, ``[t]``.
        weighing: only its ``reverse`` and ``keep_mass`` count here.

    >>> p, q = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.25, 0.5, 0.25]]).log()
    >>> [round(part.item(), 4) for part in parts(q, p, torch.tensor([0]), Weighing(1.0, 1.0, keep_mass=True))]
    [0.1438, 0.0294]
    """
    q, p = split_at(student, labels), split_at(teacher, labels)
    leading, other = (q, p) if weighing.reverse else (p, q)
    empty = leading.mass <= FILTERED / 2
    diversity = kl(leading.rest.masked_fill(empty, 0.0), other.rest.masked_fill(empty, 0.0))
    if weighing.keep_mass:
        diversity = diversity * leading.rest_probability.squeeze(1)
    return Parts(kl(leading.pair, other.pair), diversity)
