"""Matching of logits, without a softmax."""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from kdcli.losses.base import DistillLoss, Needs, Tokens, widen
from kdcli.losses.divergences.base import Block, Divergence, column, dot
from kdcli.losses.rows import host_may_read
from kdcli.losses.sorting import order_descending, sort_descending
from kdcli.losses.token_facts import ALIGNED
from kdcli.shapes import Logits, TeacherLogits, TokenValues


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
    zero_at_equal: ClassVar[bool] = True
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


# Universal logit distillation: a distance between distributions over two vocabularies.


class UniversalLogits(Divergence):
    """Universal logit distillation (ULD): the L1 distance of both sides' probabilities, each in falling order.

    It asks how sure each side is, not of what: the likeliest token of the one is held against the likeliest of the
    other, whatever they spell. So the two may have different tokenizers. The shorter side is filled up with zeros. The
    authors' code adds it to the cross-entropy with the label, as ``ce+1.5*uld``. With one tokenizer for both it is
    the same distance, at most twice ``tvd``.

    With different tokenizers a token counts only where the teacher has read the same text up to it; the others have
    the value 0 and stay in the mean. Their share stands in ``metrics.jsonl`` as ``uld.aligned``.

    The gradient is that of the order at hand; of equally likely tokens, that of the lower id stands first.

    Reference: Boizard et al., Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss for LLMs,
    arXiv:2402.12030, eqs. 4 and 5.

    >>> q, p = torch.tensor([[0.6, 0.4]]).log(), torch.tensor([[0.1, 0.2, 0.7]]).log()
    >>> round(UniversalLogits().divergence(q, p).item(), 4)
    0.4
    """

    name: ClassVar[str] = "uld"
    formula: ClassVar[str] = "sum_i |p_(i) - q_(i)|, p_(i) the i-th largest, the shorter filled up with 0"
    reference: ClassVar[str] = "Boizard et al. 2024 (ULD), arXiv:2402.12030, eqs. 4 and 5"
    cost: ClassVar[str] = "about 15 FLOP a vocabulary entry, and a sort of both sides"
    total: ClassVar[bool] = True

    def needs(self) -> Needs:
        """Ask for the teacher's whole distribution, over whatever vocabulary it has."""
        return Needs(full_distribution="it puts all of the teacher's probabilities in order", same_tokens=False)

    def divergence(self, log_q: Logits, log_p: TeacherLogits) -> TokenValues:
        """Return the L1 distance of the probabilities in falling order."""
        q = log_q.exp()
        ordered = q.gather(-1, order_descending(q))
        return _apart(ordered, sort_descending(log_p.exp())).abs().sum(-1)

    def divergence_and_grad(self, block: Block) -> tuple[Tensor, Tensor]:
        """Return the distance and its gradient q (s - sum q s), s = sign(q - p) at the token's rank, sign(0) = 0."""
        q = block.q
        order = order_descending(q)
        apart = _apart(q.gather(-1, order), sort_descending(block.p))
        side = torch.empty_like(q).scatter_(-1, order, torch.sign(apart[:, : q.shape[1]]))
        return apart.abs_().sum(-1), side.sub_(column(dot(q, side))).mul_(q)

    def token_loss(self, tok: Tokens) -> TokenValues:
        """Return the distance of each token, 0 where the teacher has not read the same text."""
        value, known = super().token_loss(tok), self._known(tok)
        return value if known is None else value * known.to(value.dtype)

    @torch.no_grad()
    def parts_and_grad(self, tok: Tokens) -> tuple[dict[str, Tensor], Tensor] | None:
        """Return the distance and its gradient, both 0 where the teacher has not read the same text."""
        closed, known = super().parts_and_grad(tok), self._known(tok)
        if closed is None or known is None:
            return closed
        parts, grad = closed
        shown = {name: value * known.to(value.dtype) for name, value in parts.items()}
        return shown, grad.mul_(column(known.to(grad.dtype)))

    def _known(self, tok: Tokens) -> Tensor | None:
        """Return 1 for tokens whose teacher is known and 0 for others; None where all are."""
        known = tok.facts.get(ALIGNED)
        if known is not None:
            tok.logged[f"{self.name}.{ALIGNED}"] = known
        return known


def _apart(q: Tensor, p: Tensor) -> Tensor:
    """Return q - p, the narrower one filled up with zeros."""
    wider = max(q.shape[-1], p.shape[-1])
    q, p = (side if side.shape[-1] == wider else functional.pad(side, (0, wider - side.shape[-1])) for side in (q, p))
    return q - p
