"""A teacher that is cut to its likeliest tokens, and what becomes of the mass of the rest."""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from kdcli.losses.base import Tokens
from kdcli.losses.falling import first_marked, largest
from kdcli.losses.logits import FILTERED, finite_logits
from kdcli.losses.rows import host_may_read
from kdcli.losses.teacher_view import TeacherView
from kdcli.losses.trial import sample, values, with_facts
from kdcli.shapes import Logits, TokenValues


class Truncated(TeacherView):
    """A loss that sees the teacher's likeliest tokens alone; the mass of the rest is dealt with as told.

    ``top_k`` and ``top_p`` bound the kept tokens together: at most k, and no more than are needed for a mass of p.
    The rest, P_R of the teacher and Q_R of the student, is called the tail:

    * ``tail=student``: its mass is kept and spread as the student spreads its own, ``p'_j = P_R q_j / Q_R``. Of all
      teachers that agree with what is kept, that is the one nearest to the student: a divergence ``sum q f(p/q)``
      takes on it the value that it has between the kept tokens and one bin for the rest, with the same
      gradient. The student is told how much the rest weighs, and nothing of what is in it. Defined for every objective.
    * ``tail=uniform``: its mass is kept and spread evenly. Defined for every objective.
    * ``tail=none``: it is dropped and the kept tokens are scaled up to 1. The student is taught to give nothing to
      the rest; an objective that is infinite there is refused.

    >>> p, q = torch.tensor([[0.5, 0.3, 0.1, 0.1]]).log(), torch.tensor([[0.4, 0.2, 0.3, 0.1]]).log()
    >>> tok = Tokens(torch.tensor([0]), q, p)
    >>> [round(value, 3) for value in Truncated(top_k=2).changed(tok, p).exp()[0].tolist()]
    [0.5, 0.3, 0.15, 0.05]
    """

    name: ClassVar[str] = "truncated"
    formula: ClassVar[str] = "L with p kept on its likeliest tokens and P_R q_j / Q_R on the rest"
    reference: ClassVar[str] = (
        "Csiszar 1967 (data processing), for tail=student; Hinton et al. 2015 for the teacher's mass"
    )
    cost: ClassVar[str] = "that of the loss inside, three log-sum-exps, and a top-k or, with top_p, a sort"

    whole: ClassVar[str] = "it would be cut twice"

    top_k: Annotated[int, Field(ge=0, description="tokens kept at most; 0 sets no bound")] = 64
    top_p: Annotated[float, Field(gt=0, le=1, description="mass kept at least, by as few tokens as will do")] = 1.0
    tail: Annotated[
        Literal["student", "uniform", "none"],
        Field(description="the rest's mass: as the student spreads it, evenly, or 0"),
    ] = "student"

    @model_validator(mode="after")
    def _makes_sense(self) -> "Truncated":
        if self.top_k == 0 and self.top_p == 1.0:
            raise ValueError("top_k=0 and top_p=1 cut nothing; give one of them")
        if self.tail == "none" and not _stands_exclusion(self):
            raise ValueError(
                f"{self.loss.name} is infinite where the teacher allows nothing; keep the rest's mass: tail=student"
            )
        return self

    @property
    def zero_stays(self) -> bool:
        """Whether equal models give 0: if the tail is the student's own."""
        return self.tail == "student"

    @property
    def reads_student(self) -> bool:
        """Whether the tail is the student's."""
        return self.tail == "student"

    @property
    def reads_ids(self) -> bool:
        """Whether an id must mean the same to both: if the tail is the student's."""
        return self.tail == "student"

    def changed(self, tok: Tokens, teacher: Logits) -> Tensor:
        """Return the logits of the cut teacher, the kept ones as they are; minus infinity where it allows nothing."""
        kept = likeliest(teacher, self.top_k, self.top_p)
        rest = _log_sum(teacher, ~kept)
        tok.watched[f"{self.name}.kept_mass"] = torch.sigmoid(_log_sum(teacher, kept) - rest).squeeze(1)
        if self.tail == "none":
            return teacher.masked_fill(~kept, -torch.inf)
        if self.tail == "student":
            like = finite_logits(tok.student.detach())
        else:
            like = torch.zeros_like(teacher).masked_fill_(teacher <= FILTERED / 2, FILTERED)
        return torch.where(kept, teacher, like + (rest - _log_sum(like, ~kept)))


def _log_sum(logits: Logits, chosen: Tensor) -> Tensor:
    """Return the log-sum-exp over the chosen entries of each row, ``[t, 1]``."""
    return torch.logsumexp(logits.masked_fill(~chosen, FILTERED), dim=-1, keepdim=True)


def likeliest(logits: Logits, top_k: int, top_p: float) -> Tensor:
    """Mark the likeliest tokens, ``[t, v]``; of equal ones those of the lowest ids.

    Args:
        logits: shape ``[t, v]``.
        top_k: so many at most; 0 sets no bound.
        top_p: and no more than are needed for this mass; the token that reaches it is kept.

    >>> likeliest(torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log(), 0, 0.8).tolist()
    [[True, True, False, False]]
    """
    size = logits.shape[-1]
    if not host_may_read():
        return _likeliest_at_once(logits, min(top_k or size, size), top_p)
    best, ids = largest(logits, min(top_k or size, size))
    wanted = torch.ones_like(ids, dtype=torch.bool)
    if top_p < 1.0:
        mass = (best - torch.logsumexp(logits, dim=-1, keepdim=True)).exp()
        wanted = mass.cumsum(-1) - mass < top_p - _ROUNDING
    return torch.zeros_like(logits, dtype=torch.bool).scatter_(1, ids, wanted)


def _likeliest_at_once(logits: Logits, top_k: int, top_p: float) -> Tensor:
    """Mark the likeliest tokens by the logit of the last one kept, of which the host reads nothing."""
    best = torch.topk(logits, top_k, dim=-1).values
    kept = torch.full_like(best[:, :1], top_k, dtype=torch.int64)
    if top_p < 1.0:
        mass = (best - torch.logsumexp(logits, dim=-1, keepdim=True)).exp()
        kept = (mass.cumsum(-1) - mass < top_p - _ROUNDING).sum(-1, keepdim=True)
    last = best.gather(-1, kept - 1)
    above = logits > last
    return above | first_marked(logits == last, kept - above.sum(-1, keepdim=True))


_ROUNDING = 1e-6
"""Keeps a mass that is reached exactly from asking for one token more."""


def _stands_exclusion(loss: Truncated) -> bool:
    """Try the loss on a teacher that excludes tokens, a label among them, while the student allows all."""
    data = sample(loss.loss, tokens=4, entries=8)
    data.teacher[:, ::2] = -torch.inf
    found: TokenValues = values(loss.loss, with_facts(loss.loss, data))
    return bool(torch.isfinite(found).all())
