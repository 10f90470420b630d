"""The KL divergences: forward, reverse, and a fixed mix of the two."""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from kdcli.losses.block import Block, column, dot
from kdcli.losses.divergence import StableDivergence
from kdcli.losses.ops import kl
from kdcli.shapes import Logits, TokenValues


class ForwardKL(StableDivergence):
    """Forward KL divergence: the student must give mass wherever the teacher does.

    Infinite where the student excludes a token that the teacher allows.

    Reference: Hinton et al., Distilling the Knowledge in a Neural Network, arXiv:1503.02531, section 2.

    >>> import torch
    >>> q, p = torch.tensor([[0.6, 0.4]]).log(), torch.tensor([[0.9, 0.1]]).log()
    >>> round(ForwardKL().divergence(q, p).item(), 4)
    0.2263
    """

    name: ClassVar[str] = "fkl"
    formula: ClassVar[str] = "sum_j p_j (log p_j - log q_j)"
    reference: ClassVar[str] = "Hinton et al. 2015, arXiv:1503.02531, section 2"
    cost: ClassVar[str] = "about 20 FLOP a vocabulary entry"
    total: ClassVar[bool] = True
    fewest: ClassVar[int] = 1

    def between(self, log_q: Logits, log_p: Logits, tau: float) -> TokenValues:
        """Return KL(p || q)."""
        return kl(log_p, log_q, tau)

    def faint_values(self, block: Block) -> Tensor:
        """Return small values."""
        return block.small_kl()

    def divergence_and_grad(self, block: Block) -> tuple[Tensor, Tensor]:
        """Return KL(p || q) and its gradient q - p."""
        value = block.unless_excluded(dot(block.p, block.log_ratio), block.p, block.log_ratio).neg_()
        return value, block.q.sub_(block.p)


class ReverseKL(StableDivergence):
    """Reverse KL divergence: the student must not give mass where the teacher gives none.

    Infinite where the teacher excludes a token that the student allows.

    Reference: Gu et al., MiniLLM, arXiv:2306.08543, equation 1, for a single token.

    >>> import torch
    >>> q, p = torch.tensor([[0.6, 0.4]]).log(), torch.tensor([[0.9, 0.1]]).log()
    >>> round(ReverseKL().divergence(q, p).item(), 4)
    0.3112
    """

    name: ClassVar[str] = "rkl"
    formula: ClassVar[str] = "sum_j q_j (log q_j - log p_j)"
    reference: ClassVar[str] = "Gu et al. 2024 (MiniLLM), arXiv:2306.08543, eq. 1, for a single token"
    cost: ClassVar[str] = "about 25 FLOP a vocabulary entry"
    total: ClassVar[bool] = True

    def between(self, log_q: Logits, log_p: Logits, tau: float) -> TokenValues:
        """Return KL(q || p)."""
        return kl(log_q, log_p, tau)

    def faint_values(self, block: Block) -> Tensor:
        """Return small values."""
        return block.small_kl(reverse=True)

    def divergence_and_grad(self, block: Block) -> tuple[Tensor, Tensor]:
        """Return KL(q || p) and its gradient q (log q - log p - KL)."""
        mean = dot(block.q, block.log_ratio)
        value = block.unless_excluded(mean, block.q, block.log_ratio)
        return value, block.log_ratio.sub_(column(mean)).mul_(block.q)


class SymmetricKL(StableDivergence):
    """A fixed mix of forward and reverse KL; at equal shares half of Jeffreys' divergence.

    Args:
        w: share of the reverse KL, from 0 (forward alone) to 1 (reverse alone).

    Reference: Jeffreys 1946; the baseline "FKL+RKL" of Wu et al., arXiv:2404.02657.

    >>> import torch
    >>> q, p = torch.tensor([[0.6, 0.4]]).log(), torch.tensor([[0.9, 0.1]]).log()
    >>> round(SymmetricKL().divergence(q, p).item(), 4)
    0.2688
    """

    name: ClassVar[str] = "sym_kl"
    formula: ClassVar[str] = "(1 - w) KL(p || q) + w KL(q || p)"
    reference: ClassVar[str] = "Jeffreys 1946; baseline FKL+RKL of Wu et al. 2025, arXiv:2404.02657"
    cost: ClassVar[str] = "about 30 FLOP a vocabulary entry"
    total: ClassVar[bool] = True

    w: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, description="share of the reverse KL")] = 0.5

    def between(self, log_q: Logits, log_p: Logits, tau: float) -> TokenValues:
        """Return the mix; a side without weight is not looked at, be it infinite."""
        if self.w == 0.0:
            return kl(log_p, log_q, tau)
        if self.w == 1.0:
            return kl(log_q, log_p, tau)
        return (1.0 - self.w) * kl(log_p, log_q, tau) + self.w * kl(log_q, log_p, tau)

    def faint_values(self, block: Block) -> Tensor:
        """Return small values."""
        return (1.0 - self.w) * block.small_kl() + self.w * block.small_kl(reverse=True)

    def divergence_and_grad(self, block: Block) -> tuple[Tensor, Tensor]:
        """Return the mix and its gradient (1 - w) (q - p) + w q (log q - log p - KL)."""
        p, q, ratio = block.p, block.q, block.log_ratio
        forward, reverse = -dot(p, ratio), dot(q, ratio)
        ahead, behind = block.both_unless_excluded(forward, reverse)
        if self.w in (0.0, 1.0):
            value = behind if self.w else ahead
        else:
            value = (1.0 - self.w) * ahead + self.w * behind
        if block.total:  # exactly 0 where the sides are equal
            return value, torch.lerp(ratio.sub_(column(reverse)).mul_(q), q - p, 1.0 - self.w)
        # (1 - w)(q - p) + w q (ratio - KL) = q (w (ratio - KL) + 1 - w) - (1 - w) p
        pull = ratio.sub_(column(reverse)).mul_(self.w).add_(1.0 - self.w).mul_(q)
        return value, pull.sub_(p, alpha=1.0 - self.w)
