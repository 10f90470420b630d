"""Adaptive KL: forward and reverse KL, weighed token by token."""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from kdcli.losses.base import Tokens
from kdcli.losses.block import Block, column, dot
from kdcli.losses.divergence import StableDivergence
from kdcli.losses.head import HeadRule, head_gap
from kdcli.losses.logits import finite_logits
from kdcli.losses.ops import kl, softmax
from kdcli.shapes import Logits, TokenValues

_WATCHED = "akl.head_weight"


class AdaptiveKL(StableDivergence):
    """Forward KL weighed by the gap in the teacher's head, reverse KL by the gap in its tail.

    The head is the teacher's top tokens up to a mass of mu, the gap is |p - q|. As both gaps add
    up to twice the total variation, only the head has to be found. No gradient flows through the
    weights. Where p = q, both weights are 1/2. On a teacher that is sure of one token the
    reverse KL is infinite, and so is this.

    Args:
        mu: teacher mass that counts as head; 1 makes it the forward KL.
        head_rule: "paper" counts the token that crosses mu to the head, "official" (the authors'
            code) to the tail, unless it is the first.
        flip: exchange the two weights (the paper's ablation AKL-r).

    Reference: Wu et al., Rethinking Kullback-Leibler Divergence in Knowledge Distillation for
    Large Language Models, arXiv:2404.02657, section 4.

    >>> import torch
    >>> q, p = torch.tensor([[0.2, 0.5, 0.3]]).log(), torch.tensor([[0.4, 0.35, 0.25]]).log()
    >>> round(AdaptiveKL().divergence(q, p).item(), 4), round(AdaptiveKL().weight(q.exp(), p.exp()).item(), 4)
    (0.1053, 0.875)
    """

    name: ClassVar[str] = "akl"
    formula: ClassVar[str] = "w KL(p || q) + (1 - w) KL(q || p), w = sum_head |p - q| / sum |p - q|"
    reference: ClassVar[str] = "Wu et al. 2025, arXiv:2404.02657, section 4"
    cost: ClassVar[str] = "about 45 FLOP a vocabulary entry, and a search for the head"
    total: ClassVar[bool] = True

    mu: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, description="teacher mass that counts as head")] = 0.5
    head_rule: Annotated[
        HeadRule, Field(description="whether the token crossing mu is in the head (paper) or not (official code)")
    ] = "paper"
    flip: Annotated[bool, Field(description="exchange the weights, the ablation AKL-r")] = False

    @torch.no_grad()
    def weight(self, q: Tensor, p: Tensor) -> Tensor:
        """Return the weight of the forward KL, ``[t]``, from probabilities ``[t, v]``."""
        gap = torch.sub(q, p).abs_()
        return self._weight(p, gap)

    def between(self, log_q: Logits, log_p: Logits, tau: float) -> TokenValues:
        """Return the weighed mix; a side without weight is not looked at, be it infinite."""
        return self._mixed(log_q, log_p, tau)[0]

    def token_loss(self, tok: Tokens) -> TokenValues:
        """Return the mix at the temperature, times tau^2 if asked; its weights may be watched."""
        if tok.coarse is not None:
            return super().token_loss(tok)
        assert tok.teacher is not None, "a divergence declares needs().teacher"
        student, teacher = finite_logits(tok.student), finite_logits(tok.teacher.detach())
        value, tok.watched[_WATCHED] = self._mixed(student, teacher, self.temperature)
        return value if self._scale == 1.0 else value * self._scale

    def on_bins(self, log_q: Logits, log_p: Logits) -> TokenValues:
        """Return the weighed mix of bins; the head is looked for among single tokens, the rest's bin is tail."""
        p = log_p.detach().exp()
        gap = (log_q.detach().exp() - p).abs_()
        w = self._weight(p[:, :-1], gap[:, :-1], gap.sum(-1))
        return self._mixed(log_q, log_p, 1.0, w)[0]

    def _mixed(self, log_q: Logits, log_p: Logits, tau: float, w: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if w is None:
            w = self.weight(softmax(log_q.detach(), tau), softmax(log_p.detach(), tau))
        return _mix(w, kl(log_p, log_q, tau), kl(log_q, log_p, tau)), w

    def faint_values(self, block: Block) -> Tensor:
        """Return small values."""
        w = block.watched[_WATCHED] = self.weight(block.q, block.p)
        return torch.lerp(block.small_kl(reverse=True), block.small_kl(), w)

    def divergence_and_grad(self, block: Block) -> tuple[Tensor, Tensor]:
        """Return the mix and its gradient w (q - p) + (1 - w) q (log q - log p - KL(q || p))."""
        p, q, ratio = block.p, block.q, block.log_ratio
        forward, reverse = dot(p, ratio).neg_(), dot(q, ratio)
        pull = torch.sub(q, p)
        if _WATCHED not in block.watched:
            block.watched[_WATCHED] = self._weight(p, torch.abs(pull))
        w = block.watched[_WATCHED]
        value = _mix(w, *block.both_unless_excluded(forward, reverse)) if block.total else reverse.lerp(forward, w)
        slope = ratio.sub_(column(reverse)).mul_(q)
        return value, torch.lerp(slope, pull, column(w), out=slope)

    def _weight(self, p: Tensor, gap: Tensor, whole: Tensor | None = None) -> Tensor:
        whole = gap.sum(-1) if whole is None else whole
        w = torch.where(whole > 0, head_gap(p, gap, self.mu, self.head_rule) / whole, 0.5).clamp_(0.0, 1.0)
        return 1 - w if self.flip else w


def _mix(w: Tensor, forward: Tensor, reverse: Tensor) -> Tensor:
    """Return w times the forward and 1 - w times the reverse KL; a side without weight may be infinite."""
    return torch.where(w > 0, w * forward, 0.0) + torch.where(w < 1, (1 - w) * reverse, 0.0)
