"""Token selection and weighting around any loss."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, TypeAlias

import torch
from pydantic import Field, model_validator
from torch import Tensor

from kdcli.losses.base import DistillLoss, Facts, Needs, Tokens, log_softmax, widen
from kdcli.losses.composite import hand_on, refuse_features, take
from kdcli.losses.groups import AMONG, Groups
from kdcli.losses.rows import Rows
from kdcli.losses.wrappers.route import LossWrapper, live_zeros
from kdcli.shapes import TokenMask, TokenValues

# What a token can be weighed by: numbers of a token that need no other token.


Measured: TypeAlias = Literal[
    "teacher_entropy",
    "student_entropy",
    "teacher_confidence",
    "student_confidence",
    "teacher_nll",
    "student_nll",
    "teacher_right",
    "disagreement",
    "position",
]


@dataclass(frozen=True)
class Measure:
    """One way to measure a token.

    Args:
        reads: whose logits: "teacher", "student", "both", or "none" for a place in the response.
        text: what it is.
    """

    reads: Literal["teacher", "student", "both", "none"]
    text: str


MEASURES: dict[Measured, Measure] = {
    "teacher_entropy": Measure("teacher", "entropy of the teacher, in nats"),
    "student_entropy": Measure("student", "entropy of the student, in nats"),
    "teacher_confidence": Measure("teacher", "the teacher's largest probability"),
    "student_confidence": Measure("student", "the student's largest probability"),
    "teacher_nll": Measure("teacher", "the teacher's -log p of the label, in nats"),
    "student_nll": Measure("student", "the student's -log q of the label, in nats"),
    "teacher_right": Measure("teacher", "1 where the teacher's likeliest token is the label, else 0"),
    "disagreement": Measure("both", "total variation distance of teacher and student, from 0 to 1"),
    "position": Measure("none", "place in the response, from 0 for its first token to 1 for its last"),
}


def measure(name: Measured, tok: Tokens) -> Tensor:
    """Measure tokens, ``[t]``; without gradient, at least in fp32.

    Args:
        name: any of :data:`MEASURES` but the position.
        tok: tokens with the logits that the measure reads.

    >>> import torch
    >>> tok = Tokens(torch.tensor([0]), torch.tensor([[0.6, 0.4]]).log(), torch.tensor([[0.9, 0.1]]).log())
    >>> round(measure("disagreement", tok).item(), 4), round(measure("teacher_nll", tok).item(), 4)
    (0.3, 0.1054)
    """
    if name == "disagreement":
        assert tok.teacher is not None, "the teacher is declared by needs()"
        return 0.5 * (log_softmax(tok.student).exp() - log_softmax(tok.teacher).exp()).abs().sum(-1).detach()
    whose, _, what = name.partition("_")
    logits = tok.teacher if whose == "teacher" else tok.student
    assert logits is not None, "the teacher is declared by needs()"
    log_p = log_softmax(logits.detach())
    if what == "entropy":
        return -(log_p.exp() * log_p).sum(-1)
    if what == "confidence":
        return log_p.amax(-1).exp()
    if what == "nll":
        return -log_p.gather(1, tok.labels[:, None]).squeeze(1)
    return (log_p.argmax(-1) == tok.labels).to(log_p.dtype)


def places(laid: Groups) -> Tensor:
    """Return each token's place in its response, from 0 to 1, fp32 ``[n]``; a lone token stands at 0.

    Args:
        laid: the responses, tokens of one in their order.

    >>> import torch
    >>> places(Groups.by(torch.tensor([0, 0, 0, 1]))).tolist()
    [0.0, 0.5, 1.0, 0.0]
    """
    return laid.places.float() / (laid.sizes - 1).clamp_min(1)


class WeighedTokens(LossWrapper):
    """A loss whose tokens are weighed one by one; those of weight 0 are not computed.

    Subclasses say in :meth:`_selected` which tokens count, and how much.
    """

    @abstractmethod
    def _selected(self, tok: Tokens) -> tuple[Tensor, Rows | None, DistillLoss, Tokens]:
        """Return weights, rows (None: all), loss inside, and what it sees, of the tokens that count."""

    def parts(self, tok: Tokens) -> dict[str, Tensor]:
        """Return the weighted loss, 0 on tokens that are not selected."""
        weight, rows, child, view = self._selected(tok)
        if rows is not None and rows.none:
            return {self.name: live_zeros(tok.student)}
        value = child.token_loss(view)
        return {self.name: self._told(value * weight.to(value.dtype), rows, child, view, tok)}

    def parts_and_grad(self, tok: Tokens) -> tuple[dict[str, Tensor], Tensor] | None:
        """Return the weighted loss and its gradient, taken on the selected tokens only."""
        weight, rows, child, view = self._selected(tok)
        if rows is not None and rows.none:
            return {self.name: live_zeros(tok.student)}, torch.zeros_like(widen(tok.student))
        closed = child.parts_and_grad(view)
        if closed is None:
            return None
        first, *others = closed[0].values()
        value = sum(others, start=first)
        named = {self.name: self._told(value * weight.to(value.dtype), rows, child, view, tok)}
        grad = closed[1].mul_(weight[:, None].to(closed[1].dtype))
        return named, grad if rows is None else rows.placed(grad)

    @staticmethod
    def _told(values: Tensor, rows: Rows | None, child: DistillLoss, view: Tokens, tok: Tokens) -> Tensor:
        """Put numbers of some tokens to their places among all, and likewise what the loss inside logged."""
        if rows is not None:
            view.logged.update({name: rows.placed(value) for name, value in view.logged.items()})
        hand_on(child.name, child, view, tok)
        return values if rows is None else rows.placed(values)


_MEASURE, _WEIGHT = "weighing/measure", "weighing/weight"
_ROUNDING = 1e-9
"""Keeps ``keep * n`` from rising above a whole number by rounding."""


class Weighted(WeighedTokens):
    """A loss on the tokens that count most: some are selected, and the selected ones weighed.

    With m the measure of a token (``by``), the ``keep n`` tokens of highest m are selected, with all ties
    of the last one, and weighed by ``m^power exp(sharpness m)``; ``favour=low`` selects the lowest and weighs
    by ``exp(-sharpness m)``. Weights are without gradient and have mean 1 over the micro-batch, so the size
    of the loss stays; they depend on the micro-batch's size, or with ``scope=sequence`` on the sequence
    alone. If all weights are 0, all tokens count alike.

    Measures: teacher_entropy, student_entropy (nats); teacher_confidence, student_confidence (largest probability);
    teacher_nll, student_nll (-log of the label's probability); teacher_right (1 or 0: its likeliest token is the
    label); disagreement (total variation distance); position (0 the first, 1 the last of a response).

    >>> loss = Weighted(keep=0.5)
    >>> facts = {"weighing/measure": torch.tensor([0.1, 2.0, 0.4, 1.0]), "seq": torch.zeros(4, dtype=torch.int64)}
    >>> loss.plan(facts)["weighing/weight"].tolist()
    [0.0, 2.0, 0.0, 2.0]
    """

    name: ClassVar[str] = "weighted"
    formula: ClassVar[str] = "w_i L_i, w_i ~ [m_i among the keep n highest] m_i^power exp(sharpness m_i), mean w = 1"
    reference: ClassVar[str] = "Wang et al. 2021, arXiv:2105.12967 (selection by rank)"
    cost: ClassVar[str] = (
        "that of the loss inside on the selected tokens, and a survey pass over what the measure reads"
    )

    by: Annotated[Measured, Field(description="measure of a token")] = "teacher_entropy"
    favour: Annotated[Literal["high", "low"], Field(description="which end of the measure counts most")] = "high"
    keep: Annotated[float, Field(gt=0, le=1, description="share of tokens selected")] = 0.5
    power: Annotated[float, Field(ge=0, le=100, description="weight by measure^power; 0 leaves weights alike")] = 0.0
    sharpness: Annotated[float, Field(ge=0, le=1e6, description="weight by exp(sharpness * measure)")] = 0.0
    scope: Annotated[Literal["micro_batch", "sequence"], Field(description="tokens among which weights are chosen")] = (
        "micro_batch"
    )

    @model_validator(mode="after")
    def _bounded(self) -> "Weighted":
        if self.power and self.favour == "low":
            raise ValueError("power favours high measures; their inverse has no bound: use sharpness with favour=low")
        refuse_features({"loss": self.loss}, self.name)
        return self

    def needs(self) -> Needs:
        """Ask for a survey of what the measure reads, and for what the loss inside asks."""
        reads = MEASURES[self.by].reads
        whole = "" if reads in ("none", "student") else f"{self.by} is measured on all of the teacher's logits"
        survey = "both" if reads == "student" else reads
        return super().needs() | Needs(teacher=reads in ("teacher", "both"), survey=survey, full_distribution=whole)

    def survey(self, tok: Tokens) -> Facts:
        """Return the measure of each token, and what the loss inside surveys."""
        inner = super().survey(tok)
        return inner if self.by == "position" else {_MEASURE: measure(self.by, tok), **inner}

    def plan(self, facts: Facts) -> Facts:
        """Choose the weights."""
        apart = self.scope == "sequence" or AMONG in facts
        measured = places(Groups.of(facts, "sequence")) if self.by == "position" else facts[_MEASURE]
        weight = self.weights(measured, Groups.of(facts, self.scope) if apart else None)
        return {_WEIGHT: weight, _MEASURE: measured, **super().plan(facts)}

    @property
    def plans_among(self) -> bool:
        """Whether the loss inside can plan for some of the tokens; weights can be chosen among these."""
        return self.loss.plans_among

    def weights(self, measured: TokenValues, groups: Groups | None = None) -> TokenValues:
        """Return the weights of tokens that are weighed against each other, mean 1.

        Args:
            measured: their measures, ``[t]``.
            groups: the tokens that are; all together without.
        """
        signed = (measured if self.favour == "high" else -measured).double()
        raw = selected(signed, self.keep, groups).double()
        if self.power:
            raw = raw * measured.double().clamp_min(0.0) ** self.power
        if self.sharpness:
            left = signed.masked_fill(raw == 0, -torch.inf)
            best = left.amax() if groups is None else groups.most(left)
            raw = raw * torch.exp(self.sharpness * (signed - best).clamp_max(0.0))
        mean = raw.mean() if groups is None else groups.sums(raw) / groups.sizes
        return torch.where(mean > 0, raw / mean, 1.0).to(measured.dtype)

    def _selected(self, tok: Tokens) -> tuple[Tensor, Rows | None, DistillLoss, Tokens]:
        """Return weights, rows (None: all), loss inside, and what it sees, of the tokens that count."""
        weight = tok.facts[_WEIGHT]
        tok.logged[f"{self.name}.selected"] = (weight > 0).to(weight.dtype)
        tok.logged[f"{self.name}.{self.by}"] = tok.facts[_MEASURE]
        child, view = self._inside(tok)
        if self.keep == 1.0 and not self.power:
            return weight, None, child, view
        rows = Rows.of(weight != 0)
        return rows.take(weight), rows, child, take(view, rows)


def selected(measured: TokenValues, keep: float, groups: Groups | None = None) -> TokenMask:
    """Mark the highest ``keep n`` tokens, at least one, with all ties of the last one.

    Args:
        measured: what they are ranked by, ``[t]``.
        keep: share of tokens, above 0.
        groups: the tokens among which they are found; all together without.

    >>> selected(torch.tensor([0.1, 0.5, 0.5, 0.9, 0.2]), 0.4).tolist()
    [False, True, True, True, False]
    """
    if keep == 1.0 or not len(measured):
        return torch.ones_like(measured, dtype=torch.bool)
    groups = groups or Groups.one(measured)
    count = (keep * groups.sizes.double() - _ROUNDING).ceil().long().clamp_min(1)
    return measured >= groups.ranked(measured, count)
