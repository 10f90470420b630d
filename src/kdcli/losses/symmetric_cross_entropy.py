"""Cross-entropy with labels of which some are wrong: the usual one and its reverse."""

import math
from typing import Annotated, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from kdcli.losses.base import DistillLoss, Needs, Tokens, log_softmax, widen
from kdcli.losses.divergences.ops import EXCLUDED
from kdcli.shapes import TokenValues


class SymmetricCrossEntropy(DistillLoss):
    """Cross-entropy with the label and its reverse, on which wrong labels have less influence.

    The reverse has the student's distribution in front and the label inside the logarithm, clamped at ``floor``::

        RCE = -sum_j q_j log max(1[j = y], floor) = -log(floor) (1 - q_y)

    so it is bounded, and its gradient is smallest where the student holds the label for unlikely. Both have the
    direction q - 1[y], so the gradient is ``(alpha - beta log(floor) q_y) (q - 1[y])``. Needs no teacher.

    Reference: Wang et al., Symmetric Cross Entropy for Robust Learning with Noisy Labels, arXiv:1908.06112; GOLD,
    arXiv:2403.19754, trains on generated rows with it, alpha 0.01 or 0.1 by task, and beta 1.

    >>> tok = Tokens(labels=torch.tensor([0]), student=torch.tensor([[0.6, 0.4]]).log())
    >>> round(SymmetricCrossEntropy(alpha=0).token_loss(tok).item(), 4)  # 0.4 times -log(0.0001) = 9.21034
    3.6841
    """

    name: ClassVar[str] = "sce"
    formula: ClassVar[str] = "-alpha log q_y - beta log(floor) (1 - q_y), y the label"
    reference: ClassVar[str] = "Wang et al. 2019, arXiv:1908.06112; GOLD, arXiv:2403.19754"
    cost: ClassVar[str] = "that of ce; no teacher"

    alpha: Annotated[float, Field(ge=0, description="weight of the cross-entropy")] = 0.1
    beta: Annotated[float, Field(ge=0, description="weight of the reverse cross-entropy")] = 1.0
    floor: Annotated[float, Field(gt=0, lt=1, description="probability that stands for 0 inside the logarithm")] = 1e-4

    @model_validator(mode="after")
    def _something(self) -> "SymmetricCrossEntropy":
        if not self.alpha and not self.beta:
            raise ValueError("alpha and beta are both 0: nothing is learnt")
        return self

    @property
    def bound(self) -> float:
        """The largest value of the reverse cross-entropy, -log floor, in nats."""
        return -math.log(self.floor)

    def needs(self) -> Needs:
        """Ask for no teacher, and for labels most of which are right."""
        return Needs(teacher=False, right_labels=True)

    def token_loss(self, tok: Tokens) -> TokenValues:
        """Return the weighted sum, never negative."""
        log_q = log_softmax(tok.student).gather(1, tok.labels[:, None]).squeeze(1)
        reverse = -torch.expm1(log_q) * (self.beta * self.bound)
        if not self.alpha:
            return reverse
        return torch.where(log_q < EXCLUDED, torch.inf, reverse - self.alpha * log_q)

    @torch.no_grad()
    def parts_and_grad(self, tok: Tokens) -> tuple[dict[str, Tensor], Tensor]:
        """Return the value and its gradient, a multiple of q less 1 at the label."""
        value = self.token_loss(tok)
        label = tok.labels[:, None]
        q = torch.softmax(widen(tok.student), dim=-1)
        factor = q.gather(1, label).mul_(self.beta * self.bound).add_(self.alpha)
        return {self.name: value}, q.scatter_add_(1, label, torch.full_like(factor, -1.0)).mul_(factor)
