"""Label revision: a teacher that is wrong about the label is set right before anybody learns from it."""

import math
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from kdcli.losses.base import Tokens
from kdcli.losses.teacher_view import TeacherView
from kdcli.shapes import Logits


class Revised(TeacherView):
    """A loss whose teacher is mixed with the label wherever its likeliest token is another one.

    There, with m the likeliest token and y the label::

        p' = b p + (1 - b) onehot(y),   b = eta / (p_m - p_y + 1)

    so that the label leads by exactly ``1 - eta``, whatever the teacher said. Elsewhere the teacher stays as it is. The
    share of revised tokens stands in ``metrics.jsonl`` as ``revised.share``. The paper does not print its eta.

    >>> p = torch.tensor([[0.6, 0.3, 0.1]]).log()
    >>> tok = Tokens(torch.tensor([1]), torch.zeros(1, 3), p)
    >>> [round(value, 4) for value in Revised(eta=0.8).changed(tok, p).exp()[0].tolist()]
    [0.3692, 0.5692, 0.0615]
    """

    name: ClassVar[str] = "revised"
    formula: ClassVar[str] = "L with p' = b p + (1-b) onehot(y), b = eta/(max p - p_y + 1), where argmax p != y"
    reference: ClassVar[str] = "Lan et al. 2024, arXiv:2404.03693, label revision"
    cost: ClassVar[str] = "that of the loss inside, and a log-sum-exp of the teacher"

    eta: Annotated[float, Field(gt=0, lt=1, description="the label leads by 1 - eta where the teacher is wrong")] = 0.8

    whole: ClassVar[str] = "label revision reads the teacher's probability of every label"

    def changed(self, tok: Tokens, teacher: Logits) -> Tensor:
        """Return the logits of the revised teacher; where it is right, its own."""
        total = torch.logsumexp(teacher, dim=-1, keepdim=True)
        label = tok.labels[:, None]
        top, target = teacher.amax(dim=-1, keepdim=True), teacher.gather(1, label)
        wrong = target < top
        log_b = math.log(self.eta) - torch.log1p((top - total).exp() - (target - total).exp())
        added = torch.log(-torch.expm1(log_b)) + total
        with_label = torch.where(wrong, torch.logaddexp(target + log_b, added), target)
        tok.watched[f"{self.name}.share"] = wrong.squeeze(1).to(total.dtype)
        return (teacher + torch.where(wrong, log_b, 0.0)).scatter_(1, label, with_label)
