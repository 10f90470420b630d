"""Wrappers that transform the teacher: revised, tempered, truncated."""

import math
from abc import abstractmethod
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from kdcli.losses.base import FILTERED, Needs, Tokens, finite_logits
from kdcli.losses.composite import refuse_features
from kdcli.losses.rows import host_may_read
from kdcli.losses.samples import sample, values, with_facts
from kdcli.losses.sorting import first_marked, largest
from kdcli.losses.wrappers.route import LossWrapper
from kdcli.shapes import Logits, TokenValues


class TeacherTransform(LossWrapper):
    """A loss whose teacher is changed before it looks at it, in its survey too.

    Subclasses are final and define :meth:`changed`. They nest: the outer one changes the teacher first.
    """

    zero_at_equal: ClassVar[bool] = False

    whole: ClassVar[str] = "a transform of the teacher reads all of its logits"
    reads_student: ClassVar[bool] = False
    """Whether the changed teacher depends on the student, which a survey must then see as well."""
    reads_ids: ClassVar[bool] = True
    """Whether an id must mean the same token to teacher and student."""

    @model_validator(mode="after")
    def _there_is_a_teacher(self) -> "TeacherTransform":
        if not self.loss.needs().teacher:
            raise ValueError(f"{self.loss.name} looks at no teacher's logits, so nothing would change")
        refuse_features({"loss": self.loss}, self.name)
        return self

    @abstractmethod
    def changed(self, tok: Tokens, teacher: Logits) -> Tensor:
        """Return the logits that the loss inside sees in place of the teacher's, ``[t, v]``, as a new tensor.

        Args:
            tok: the tokens in hand.
            teacher: the teacher's logits, at least fp32, finite.
        """

    def needs(self) -> Needs:
        """Ask for the whole teacher, and for what the loss inside asks."""
        inner = super().needs()
        survey = "both" if self.reads_student and inner.survey != "none" else inner.survey
        return inner | Needs(survey=survey, full_distribution=self.whole, same_tokens=self.reads_ids)

    def shown(self, tok: Tokens) -> Tokens:
        """Return the tokens with the changed teacher."""
        assert tok.teacher is not None, "needs().teacher is declared"
        return replace(tok, teacher=self.changed(tok, finite_logits(tok.teacher.detach())))


# Label revision: a teacher that is wrong about the label is set right before anybody learns from it.


class Revised(TeacherTransform):
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
        tok.logged[f"{self.name}.share"] = wrong.squeeze(1).to(total.dtype)
        return (teacher + torch.where(wrong, log_b, 0.0)).scatter_(1, label, with_label)


# A temperature for the teacher alone.


class Tempered(TeacherTransform):
    """A loss whose teacher is softened or sharpened, the student being left as it is.

    Below 1 the teacher is sharpened towards its likeliest token, above 1 softened. A temperature of
    the loss inside comes on top, on both sides.

    >>> import torch
    >>> p, q = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.75, 0.25]]).log()
    >>> round(Tempered(temperature=2.0).token_loss(Tokens(torch.tensor([0]), q, p)).item(), 6)
    0.0
    """

    name: ClassVar[str] = "tempered"
    formula: ClassVar[str] = "L with softmax(t / tau) for p"
    reference: ClassVar[str] = "Hinton et al. 2015, arXiv:1503.02531, section 2, on one side only"
    cost: ClassVar[str] = "that of the loss inside, and a division"

    reads_ids: ClassVar[bool] = False
    whole: ClassVar[str] = "at a temperature other than 1 the rest has no known mass"

    temperature: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="softmax temperature tau of the teacher alone")
    ] = 2.0

    def changed(self, tok: Tokens, teacher: Logits) -> Tensor:
        """Return the teacher's logits over tau."""
        return teacher / self.temperature


# A teacher that is cut to its likeliest tokens, and what becomes of the mass of the rest.


class Truncated(TeacherTransform):
    """A loss that sees the teacher's likeliest tokens alone; an option says what happens to the rest's mass.

    ``top_k`` and ``top_p`` bound the kept tokens together: at most k, and no more than are needed for a mass of p.
    The rest, P_R of the teacher and Q_R of the student, is called the tail:

    * ``tail=student``: its mass is kept and spread as the student spreads its own, ``p'_j = P_R q_j / Q_R``. Of all
      teachers that agree with what is kept, that is the one nearest to the student: a divergence ``sum q f(p/q)``
      takes on it the value that it has between the kept tokens and one bin for the rest, with the same
      gradient. The student learns how much the rest weighs, and nothing of what is in it. Defined for every objective.
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
    def zero_at_equal(self) -> bool:
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
        tok.logged[f"{self.name}.kept_mass"] = torch.sigmoid(_log_sum(teacher, kept) - rest).squeeze(1)
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
