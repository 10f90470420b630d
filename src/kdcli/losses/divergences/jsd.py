"""The generalised Jensen-Shannon divergence."""

from typing import Annotated, ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor

from kdcli.losses.divergences.base import Block, Divergence, StableDivergence, column, dot, log_near_one, mix
from kdcli.losses.divergences.ops import kl_to_mixture
from kdcli.shapes import Logits, TokenValues


class JensenShannon(StableDivergence):
    """Jensen-Shannon divergence: both sides against their mixture; bounded and always finite.

    As beta goes to 0, the value divided by beta goes to the forward KL; as beta goes to 1, the
    value divided by 1 - beta goes to the reverse KL. The ends themselves are therefore refused.

    Args:
        beta: the teacher's share in the mixture, as in GKD, strictly between 0 and 1. (DistiLLM's
            and ABKD's code count the student's share: their lambda is 1 - beta.)
        normalize: divide by beta (1 - beta), so that a sweep over beta keeps its size.

    Reference: Agarwal et al., GKD, arXiv:2306.13649, equation 1.

    >>> import torch
    >>> q, p = torch.tensor([[0.6, 0.4]]).log(), torch.tensor([[0.9, 0.1]]).log()
    >>> round(JensenShannon().divergence(q, p).item(), 4)
    0.0633
    """

    name: ClassVar[str] = "jsd"
    formula: ClassVar[str] = "beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q"
    reference: ClassVar[str] = "Agarwal et al. 2024 (GKD), arXiv:2306.13649, eq. 1"
    cost: ClassVar[str] = "about 40 FLOP a vocabulary entry"
    total: ClassVar[bool] = True
    small_below: ClassVar[float] = 1e-2

    beta: Annotated[
        float, Field(gt=0, lt=1, allow_inf_nan=False, description="share of the teacher in the mixture m")
    ] = 0.5
    normalize: Annotated[bool, Field(description="divide by beta (1 - beta)")] = False

    @field_validator("beta", mode="before")
    @classmethod
    def _inside(cls, beta: object) -> object:
        try:
            end = float(beta) in (0.0, 1.0)  # pyright: ignore[reportArgumentType]
        except (TypeError, ValueError):
            end = False
        if end:
            raise ValueError(
                "beta must lie strictly between 0 and 1; for the ends use fkl (beta to 0) or rkl (beta to 1)"
            )
        return beta

    def between(self, log_q: Logits, log_p: Logits, tau: float) -> TokenValues:
        """Return the divergence."""
        teacher, student = self.beta, 1.0 - self.beta
        to_p, to_q = kl_to_mixture(log_p, log_q, teacher, tau), kl_to_mixture(log_q, log_p, student, tau)
        return (teacher * to_p + student * to_q) / self._norm

    def small_values(self, block: Block) -> Tensor:
        """Return small values."""
        to_p, to_q = block.small_kl(self.beta), block.small_kl(1.0 - self.beta, reverse=True)
        return (self.beta * to_p + (1.0 - self.beta) * to_q) / self._norm

    def small_grad(self, block: Block) -> Tensor:
        """Return the gradient where the value is small."""
        teacher, student = block.small_slopes(self.beta)[1], block.small_slopes(1.0 - self.beta, reverse=True)[0]
        return (self.beta * teacher + (1.0 - self.beta) * student) / self._norm

    @property
    def small_grad_below(self) -> float:
        """The gradient's q/m is nearly 1 where the teacher's share or the value is small."""
        return 4e-9 / (self.beta * self._norm)

    def divergence_and_grad(self, block: Block) -> tuple[Tensor, Tensor]:
        """Return the divergence and its gradient (1 - beta) q (log q - log m - KL(q || m))."""
        p, q = block.p, block.q
        mixture = mix(q, p, self.beta)
        teacher = log_near_one(torch.div(p, mixture))
        student = log_near_one(torch.div(q, mixture, out=mixture))
        to_q = dot(q, student)
        value = dot(p, teacher).mul_(self.beta).add_(to_q, alpha=1.0 - self.beta).div_(self._norm)
        return value, student.sub_(column(to_q)).mul_(q).mul_((1.0 - self.beta) / self._norm)

    @property
    def _norm(self) -> float:
        return self.beta * (1.0 - self.beta) if self.normalize else 1.0


# The total variation distance.


class TotalVariation(Divergence):
    """Total variation distance: the probability mass on which the two sides disagree, from 0 to 1.

    A token to which the student gives next to nothing gets next to no gradient.

    Reference: Wen et al., f-DISTILL, arXiv:2307.15190, section 3.

    >>> import torch
    >>> q, p = torch.tensor([[0.6, 0.4]]).log(), torch.tensor([[0.9, 0.1]]).log()
    >>> round(TotalVariation().divergence(q, p).item(), 4)
    0.3
    """

    name: ClassVar[str] = "tvd"
    formula: ClassVar[str] = "1/2 sum_j |p_j - q_j|"
    reference: ClassVar[str] = "Wen et al. 2023 (f-DISTILL), arXiv:2307.15190, section 3"
    cost: ClassVar[str] = "about 15 FLOP a vocabulary entry"
    total: ClassVar[bool] = True

    def divergence(self, log_q: Logits, log_p: Logits) -> TokenValues:
        """Return half the L1 distance."""
        return 0.5 * (log_q.exp() - log_p.exp()).abs().sum(-1)

    def divergence_and_grad(self, block: Block) -> tuple[Tensor, Tensor]:
        """Return half the L1 distance and its gradient q (s - sum q s) / 2, s = sign(q - p), sign(0) = 0."""
        apart = torch.sub(block.q, block.p, out=block.p)
        side = torch.sign(apart)
        value = apart.abs_().sum(-1).mul_(0.5)
        return value, side.sub_(column(dot(block.q, side))).mul_(block.q).mul_(0.5)
