"""Cross-entropies: against the label, and against the teacher."""

from typing import ClassVar

import torch
from torch import Tensor

from kdcli.losses.base import DistillLoss, Needs, Tokens, log_softmax, widen
from kdcli.losses.divergences.base import Block, Divergence, dot
from kdcli.losses.divergences.ops import EXCLUDED
from kdcli.shapes import Logits, TokenValues


class CrossEntropy(DistillLoss):
    """Cross-entropy with the label: fine-tuning on the data, or SeqKD on a teacher's text.

    Needs no teacher.

    Reference: Kim and Rush, Sequence-Level Knowledge Distillation, arXiv:1606.07947, section 3.

    >>> import torch
    >>> tok = Tokens(labels=torch.tensor([0]), student=torch.tensor([[0.6, 0.4]]).log())
    >>> round(CrossEntropy().token_loss(tok).item(), 4)
    0.5108
    """

    name: ClassVar[str] = "ce"
    formula: ClassVar[str] = "-log q_y, y the label"
    reference: ClassVar[str] = "Kim & Rush 2016, arXiv:1606.07947, section 3"
    cost: ClassVar[str] = "about 10 FLOP a vocabulary entry; no teacher"

    def needs(self) -> Needs:
        """Ask for no teacher, and for labels that are right."""
        return Needs(teacher=False, right_labels=True)

    def token_loss(self, tok: Tokens) -> TokenValues:
        """Return -log q of the label, never negative."""
        value = -log_softmax(tok.student).gather(1, tok.labels[:, None]).squeeze(1)
        return torch.where(value > -EXCLUDED, torch.inf, value)

    @torch.no_grad()
    def parts_and_grad(self, tok: Tokens) -> tuple[dict[str, Tensor], Tensor]:
        """Return the value and its gradient, q less 1 at the label."""
        logits, label = widen(tok.student), tok.labels[:, None]
        q = torch.softmax(logits, dim=-1)
        below_top = logits.amax(-1, keepdim=True) - logits.gather(1, label)
        value = below_top.sub_(torch.log(q.amax(-1, keepdim=True))).squeeze(1)
        return {self.name: value}, q.scatter_add_(1, label, torch.full_like(below_top, -1.0))


class SoftCrossEntropy(Divergence):
    """Cross-entropy with the teacher: the forward KL plus the teacher's entropy, same gradient.

    Reference: Hinton et al., Distilling the Knowledge in a Neural Network, arXiv:1503.02531, section 2.

    >>> import torch
    >>> q, p = torch.tensor([[0.6, 0.4]]).log(), torch.tensor([[0.9, 0.1]]).log()
    >>> round(SoftCrossEntropy().divergence(q, p).item(), 4)
    0.5514
    """

    name: ClassVar[str] = "soft_ce"
    zero_at_equal: ClassVar[bool] = False  # the teacher's entropy is left
    formula: ClassVar[str] = "-sum_j p_j log q_j"
    reference: ClassVar[str] = "Hinton et al. 2015, arXiv:1503.02531, section 2"
    cost: ClassVar[str] = "about 20 FLOP a vocabulary entry"
    total: ClassVar[bool] = True

    def divergence(self, log_q: Logits, log_p: Logits) -> TokenValues:
        """Return the cross-entropy, never negative."""
        p = log_p.exp()
        lost = ((log_q * self.temperature < EXCLUDED) & (p > 0)).any(-1)
        return torch.where(lost, torch.inf, -(p * log_q).sum(-1))

    def divergence_and_grad(self, block: Block) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy and its gradient q - p."""
        value = block.unless_excluded(dot(block.p, block.log_q), block.p, block.log_q).neg_()
        return value, block.q.sub_(block.p)
