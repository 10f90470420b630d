"""Matching of logits, without a softmax."""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from kdcli.losses.base import DistillLoss, Tokens
from kdcli.losses.block import dot
from kdcli.losses.logits import widen
from kdcli.losses.rows import host_may_read
from kdcli.shapes import TokenValues


class LogitsMSE(DistillLoss):
    """Mean squared difference of the logits, by default after centring each side.

    A vocabulary entry whose logit is not finite on either side is left out of both means.

    Args:
        centred: take each side's mean off first, so that a constant added to all logits, which
            no softmax sees, costs nothing.

    Reference: Hinton et al., arXiv:1503.02531, section 2.1: the limit of soft labels at high temperature.

    >>> tok = Tokens(torch.tensor([0]), torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0, 1.0]]))
    >>> LogitsMSE().token_loss(tok).item(), LogitsMSE(centred=False).token_loss(tok).item()
    (1.0, 2.0)
    """

    name: ClassVar[str] = "mse_logits"
    formula: ClassVar[str] = "1/V sum_j (z_j - t_j)^2, z and t less their means if centred"
    reference: ClassVar[str] = "Hinton et al. 2015, arXiv:1503.02531, section 2.1"
    cost: ClassVar[str] = "about 5 FLOP a vocabulary entry; no softmax"

    centred: Annotated[bool, Field(description="take each side's mean off first")] = True

    def token_loss(self, tok: Tokens) -> TokenValues:
        """Return the mean squared difference over the entries finite on both sides."""
        apart, count = self._apart(tok)
        return apart.square().sum(-1) / count.squeeze(1)

    @torch.no_grad()
    def parts_and_grad(self, tok: Tokens) -> tuple[dict[str, Tensor], Tensor] | None:
        """Return the value and its gradient, twice the mean difference.

        Where the host may read numbers, None if a logit is not finite; all entries count otherwise.
        """
        if not host_may_read():
            apart, count = self._apart(tok)
            return {self.name: apart.square().sum(-1) / count.squeeze(1)}, 2.0 * apart / count
        student, teacher = self._wide(tok)
        apart = torch.sub(student, teacher)
        mean = apart.mean(-1, keepdim=True)
        if not torch.isfinite(mean).all():
            return None
        if self.centred:
            apart.sub_(mean)
        size = apart.shape[1]
        return {self.name: dot(apart, apart).div_(size)}, apart.mul_(2.0 / size)

    def _apart(self, tok: Tokens) -> tuple[Tensor, Tensor]:
        """Return the difference, 0 at entries not finite on both sides, ``[t, v]``, and how many are, ``[t, 1]``."""
        student, teacher = self._wide(tok)
        kept = torch.isfinite(student) & torch.isfinite(teacher)
        apart = torch.where(kept, student, 0.0) - torch.where(kept, teacher, 0.0)
        count = kept.sum(-1, keepdim=True).clamp_min(1)
        if self.centred:
            apart = torch.where(kept, apart - apart.sum(-1, keepdim=True) / count, 0.0)
        return apart, count

    @staticmethod
    def _wide(tok: Tokens) -> tuple[Tensor, Tensor]:
        assert tok.teacher is not None, "declared by needs()"
        return widen(tok.student), widen(tok.teacher.detach())
