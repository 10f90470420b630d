"""Skew KL divergences: one side against a mixture that holds a little of itself."""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from kdcli.losses.block import Block, column, dot, log_near_one, mix
from kdcli.losses.divergence import StableDivergence
from kdcli.losses.ops import kl_to_mixture
from kdcli.shapes import Logits, TokenValues

_REFERENCE = "Ko et al. 2024 (DistiLLM), arXiv:2402.03898, section 3.1"


class SkewForwardKL(StableDivergence):
    """Skew forward KL: forward KL towards a student that is helped by a little teacher.

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
    faint: ClassVar[float] = 5e-3

    alpha: Annotated[
        float, Field(ge=0, lt=1, allow_inf_nan=False, description="share of the teacher in the mixture")
    ] = 0.1

    def between(self, log_q: Logits, log_p: Logits, tau: float) -> TokenValues:
        """Return KL(p || m)."""
        return kl_to_mixture(log_p, log_q, self.alpha, tau)

    def faint_values(self, block: Block) -> Tensor:
        """Return small values."""
        return block.small_kl(self.alpha)

    def faint_grad(self, block: Block) -> Tensor:
        """Return the gradient where the value is slight."""
        return block.small_slopes(self.alpha)[1]

    @property
    def slight(self) -> float:
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
    """Skew reverse KL: reverse KL towards a teacher that is helped by a little student.

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
    faint: ClassVar[float] = 5e-3

    alpha: Annotated[
        float, Field(ge=0, lt=1, allow_inf_nan=False, description="share of the student in the mixture")
    ] = 0.1

    def between(self, log_q: Logits, log_p: Logits, tau: float) -> TokenValues:
        """Return KL(q || m)."""
        return kl_to_mixture(log_q, log_p, self.alpha, tau)

    def faint_values(self, block: Block) -> Tensor:
        """Return small values."""
        return block.small_kl(self.alpha, reverse=True)

    def faint_grad(self, block: Block) -> Tensor:
        """Return the gradient where the value is slight."""
        return block.small_slopes(self.alpha, reverse=True)[0]

    @property
    def slight(self) -> float:
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
