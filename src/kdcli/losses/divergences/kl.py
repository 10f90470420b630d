"""The KL divergences: forward, reverse, and a fixed mix of the two."""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from kdcli.losses.divergences.base import Block, StableDivergence, column, dot, log_near_one, mix
from kdcli.losses.divergences.ops import kl, kl_to_mixture
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
    min_top_k: ClassVar[int] = 1

    def between(self, log_q: Logits, log_p: Logits, tau: float) -> TokenValues:
        """Return KL(p || q)."""
        return kl(log_p, log_q, tau)

    def small_values(self, block: Block) -> Tensor:
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

    def small_values(self, block: Block) -> Tensor:
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

    def small_values(self, block: Block) -> Tensor:
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


# Skew KL divergences: one side against a mixture that holds a little of itself.


_REFERENCE = "Ko et al. 2024 (DistiLLM), arXiv:2402.03898, section 3.1"


class SkewForwardKL(StableDivergence):
    """Skew forward KL: forward KL towards a mixture of the student with a little of the teacher.

    At most log(1 / alpha), and its gradient's coefficients at most (1 - alpha) / alpha.

    Args:
        alpha: the teacher's share in the mixture, from 0 (forward KL) to below 1.

    Reference: Ko et al., DistiLLM, arXiv:2402.03898, section 3.1.

    >>> import torch
    >>> q, p = torch.tensor([[0.6, 0.4]]).log(), torch.tensor([[0.9, 0.1]]).log()
    >>> round(SkewForwardKL().divergence(q, p).item(), 4)
    0.1902
    """

    name: ClassVar[str] = "skl"
    formula: ClassVar[str] = "KL(p || alpha p + (1 - alpha) q)"
    reference: ClassVar[str] = _REFERENCE
    cost: ClassVar[str] = "about 35 FLOP a vocabulary entry"
    total: ClassVar[bool] = True
    small_below: ClassVar[float] = 5e-3

    alpha: Annotated[
        float, Field(ge=0, lt=1, allow_inf_nan=False, description="share of the teacher in the mixture")
    ] = 0.1

    def between(self, log_q: Logits, log_p: Logits, tau: float) -> TokenValues:
        """Return KL(p || m)."""
        return kl_to_mixture(log_p, log_q, self.alpha, tau)

    def small_values(self, block: Block) -> Tensor:
        """Return small values."""
        return block.small_kl(self.alpha)

    def small_grad(self, block: Block) -> Tensor:
        """Return the gradient where the value is small."""
        return block.small_slopes(self.alpha)[1]

    @property
    def small_grad_below(self) -> float:
        """The gradient's p/m and its mean are nearly equal where the value is small."""
        return 3e-8

    def divergence_and_grad(self, block: Block) -> tuple[Tensor, Tensor] | None:
        """Return KL(p || m) and its gradient (alpha - 1) q (p/m - sum q p/m)."""
        if self.alpha < _NO_HELP:
            return None
        p, q = block.p, block.q
        lift = torch.div(p, mix(q, p, self.alpha))
        mean = dot(q, lift)
        grad = torch.sub(lift, column(mean)).mul_(q).mul_(self.alpha - 1.0)
        return dot(p, log_near_one(lift)), grad


class SkewReverseKL(StableDivergence):
    """Skew reverse KL: reverse KL towards a mixture of the teacher with a little of the student.

    At most log(1 / alpha): what the teacher excludes costs a finite amount.

    Args:
        alpha: the student's share in the mixture, from 0 (reverse KL) to below 1.

    Reference: Ko et al., DistiLLM, arXiv:2402.03898, section 3.1.

    >>> import torch
    >>> q, p = torch.tensor([[0.6, 0.4]]).log(), torch.tensor([[0.9, 0.1]]).log()
    >>> round(SkewReverseKL().divergence(q, p).item(), 4)
    0.2266
    """

    name: ClassVar[str] = "srkl"
    formula: ClassVar[str] = "KL(q || (1 - alpha) p + alpha q)"
    reference: ClassVar[str] = _REFERENCE
    cost: ClassVar[str] = "about 35 FLOP a vocabulary entry"
    total: ClassVar[bool] = True
    small_below: ClassVar[float] = 5e-3

    alpha: Annotated[
        float, Field(ge=0, lt=1, allow_inf_nan=False, description="share of the student in the mixture")
    ] = 0.1

    def between(self, log_q: Logits, log_p: Logits, tau: float) -> TokenValues:
        """Return KL(q || m)."""
        return kl_to_mixture(log_q, log_p, self.alpha, tau)

    def small_values(self, block: Block) -> Tensor:
        """Return small values."""
        return block.small_kl(self.alpha, reverse=True)

    def small_grad(self, block: Block) -> Tensor:
        """Return the gradient where the value is small."""
        return block.small_slopes(self.alpha, reverse=True)[0]

    @property
    def small_grad_below(self) -> float:
        """The gradient's g is about -1, and what differs from token to token 1 - alpha times as small as q/m - 1."""
        return 4e-9 / (1.0 - self.alpha) ** 2

    def divergence_and_grad(self, block: Block) -> tuple[Tensor, Tensor] | None:
        """Return KL(q || m) and its gradient q (g - sum q g), g = log(q/m) - alpha q/m."""
        if self.alpha < _NO_HELP:
            return None
        p, q = block.p, block.q
        lift = torch.div(q, mix(p, q, self.alpha))
        slope = lift.clone()
        log_lift = log_near_one(lift)
        value = dot(q, log_lift)
        slope = log_lift.sub_(slope, alpha=self.alpha)
        return value, slope.sub_(column(dot(q, slope))).mul_(q)


_NO_HELP = 1e-3
"""Below this share p/m is hardly bounded: the closed form's rounding grows as 1/alpha."""
