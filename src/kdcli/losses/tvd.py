"""The total variation distance."""

from typing import ClassVar

import torch
from torch import Tensor

from kdcli.losses.block import Block, column, dot
from kdcli.losses.divergence import Divergence
from kdcli.shapes import Logits, TokenValues


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
