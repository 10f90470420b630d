"""What a loss sees, what it answers, and what it must declare."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal, TypeAlias

import torch
from pydantic import Field
from torch import Tensor, nn

from kdcli.losses.block import Block
from kdcli.losses.coarse import Coarse, bins_of, value_and_grad
from kdcli.losses.layers import Dims, Features, Matches
from kdcli.options import Part
from kdcli.shapes import Logits, TeacherLogits, TokenLabels, TokenValues

Facts: TypeAlias = Mapping[str, Tensor]

FILTERED = -1e30
"""Stands in for a logit of minus infinity: its probability is exactly 0 and its gradient is 0."""

_WIDTH = {"none": 0, "teacher": 1, "both": 2}


@dataclass(frozen=True)
class Needs:
    """What an objective asks of the engine before it can run.

    Args:
        teacher: teacher logits are read.
        survey: whose logits the survey pass reads, or "none" for no survey pass.
        facts: per-token facts the source must supply.
        origins: whose words the source must supply, names of ``supplied.ORIGINS``; empty where any will do.
        drawn: sequences must be drawn from a model; rows of a data set will not do.
        same_tokens: the teacher, if one is read, must have the student's tokenizer.
        known: fewest tokens of the teacher that must be known where the rest is one bin.
        whole: why a teacher known on some tokens and one bin for the rest does not do; empty where it does.
        logits: it has a value of the student's logits; False if all it compares are layers inside the models.
        features: what of the models' inside is compared: "hidden", "attention".
    """

    teacher: bool = True
    survey: Literal["none", "teacher", "both"] = "none"
    facts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    whole: str = "it reads single logits of the teacher"
    known: int = 1
    logits: bool = True
    features: frozenset[str] = frozenset()
    drawn: bool = False
    same_tokens: bool = True

    def __or__(self, other: "Needs") -> "Needs":
        survey = self.survey if _WIDTH[self.survey] >= _WIDTH[other.survey] else other.survey
        whole = "; ".join(dict.fromkeys(one.whole for one in (self, other) if one.teacher and one.whole))
        facts, origins = self.facts | other.facts, self.origins | other.origins
        known, logits = max(self.known, other.known), self.logits or other.logits
        features, drawn = self.features | other.features, self.drawn or other.drawn
        same = any(one.same_tokens for one in (self, other) if one.anything_of_teacher)
        return Needs(self.teacher or other.teacher, survey, facts, origins, whole, known, logits, features, drawn, same)

    @property
    def anything_of_teacher(self) -> bool:
        """Whether a teacher is read at all, its logits or its inside."""
        return self.teacher or bool(self.features)


@dataclass(frozen=True)
class Tokens:
    """The tokens in hand: everything a loss can see.

    Args:
        labels: target ids, shape ``[t]``.
        student: student logits, shape ``[t, v]``.
        teacher: teacher logits, shape ``[t, w]``, with w = v unless its tokenizer is another one; None when the
            objective needs no teacher, or only bins are known.
        coarse: what is known of a teacher whose logits are not; None otherwise.
        facts: per-token numbers of shape ``[t]`` from survey, plan and source; always holds
            ``seq``, the index of the token's sequence in the micro-batch.
        watched: what a loss wants followed over training, written by it while it computes:
            ``name.what`` -> ``[t]``, without gradient. Logged as means over tokens, never summed into the loss.
        progress: share of the run that is done, 0 at its first step and 1 at its last.
        features: the inside of both models, while terms on features are taken; ``student`` then has no columns.
    """

    labels: TokenLabels
    student: Logits
    teacher: TeacherLogits | None = None
    facts: Facts = field(default_factory=dict)
    watched: dict[str, Tensor] = field(default_factory=dict)
    coarse: Coarse | None = None
    progress: float = 0.0
    features: Features | None = None

    def log_probs(self, tau: float = 1.0) -> tuple[Logits, TeacherLogits]:
        """Return ``(student, teacher)`` log-probabilities at temperature ``tau``; no gradient reaches the teacher."""
        assert self.teacher is not None, "the objective declared needs().teacher = False"
        return log_softmax(self.student, tau), log_softmax(self.teacher.detach(), tau)


def log_softmax(logits: Logits, tau: float = 1.0) -> Logits:
    """Log-probabilities at a temperature, at least in fp32, finite where a logit is minus infinity.

    >>> log_softmax(torch.tensor([[0.0, float("-inf")]])).tolist()
    [[0.0, -1.0000000150474662e+30]]
    """
    finite = finite_logits(logits)
    return torch.log_softmax(finite if tau == 1.0 else finite / tau, dim=-1)


def finite_logits(logits: Logits) -> Logits:
    """Logits in fp32 or wider, with FILTERED for minus infinity."""
    wide = widen(logits)
    return torch.where(torch.isneginf(wide), FILTERED, wide)


def widen(logits: Tensor) -> Tensor:
    """Logits in fp32, or in fp64 if they are."""
    return logits if logits.dtype == torch.float64 else logits.float()


class DistillLoss(Part, ABC):
    """An objective's value for each token; its fields are its options.

    Subclasses are final: to change behaviour, wrap. They hold no state, so an instance is
    hashable, printable and picklable.

    Class attributes:
        name: the registered name.
        formula: one line of mathematics, p the teacher, q the student, z its logits.
        reference: paper and equation.
        cost: arithmetic per vocabulary entry and what else it spends.
    """

    part: ClassVar[str] = "loss"
    formula: ClassVar[str]
    reference: ClassVar[str]
    cost: ClassVar[str]

    def needs(self) -> Needs:
        """Declare what this objective asks of the engine."""
        return Needs()

    def survey(self, tok: Tokens) -> Facts:
        """Return per-token facts of one chunk, before any loss is taken; runs without gradient."""
        return {}

    def plan(self, facts: Facts) -> Facts:
        """Turn the facts of a whole micro-batch, each of shape ``[n]``, into further facts."""
        return {}

    def matches(self, dims: Dims) -> Matches:
        """Return which layers inside the two models are compared; none by default.

        Raises:
            UsageError: FEAT-01, a layer that a model of this size does not have.
        """
        return Matches()

    def modules(self, dims: Dims) -> nn.ModuleDict:
        """Return the learned parts, freshly made; they are trained with the student and not exported."""
        return nn.ModuleDict()

    def feature_parts(self, tok: Tokens) -> dict[str, Tensor]:
        """Return the named terms, each ``[t]``, on ``tok.features``; the engine takes their gradient by autograd."""
        return {}

    @abstractmethod
    def token_loss(self, tok: Tokens) -> TokenValues:
        """Return the loss of each token, shape ``[t]``, differentiable in the student's logits."""

    def parts(self, tok: Tokens) -> dict[str, Tensor]:
        """Return the named terms, each ``[t]``, that add up to ``token_loss``."""
        return {self.name: self.token_loss(tok)}

    def parts_and_grad(self, tok: Tokens) -> tuple[dict[str, Tensor], Tensor] | None:
        """Return ``parts`` and the gradient of their sum over v, ``[t, v]``, in closed form.

        None (the default) lets the engine take the gradient by autograd. May overwrite
        ``tok.student`` and ``tok.teacher``, which the engine owns.
        """
        return None


class Divergence(DistillLoss):
    """A loss that is a function of the two log-probability vectors of a token."""

    temperature: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="softmax temperature tau of both sides")
    ] = 1.0
    fewest: ClassVar[int] = 2
    """Fewest known tokens: with one, nothing says where among the rest the student's mass may lie."""

    scale_tau2: Annotated[bool, Field(description="multiply by tau^2, so that gradients keep their size")] = True

    @abstractmethod
    def divergence(self, log_q: Logits, log_p: TeacherLogits) -> TokenValues:
        """Return the divergence of each token from student ``log_q`` and teacher ``log_p``."""

    def needs(self) -> Needs:
        """Ask for the teacher; its likeliest tokens and the mass of the rest will do at temperature 1."""
        whole = "" if self.temperature == 1.0 else "at a temperature other than 1 the rest has no known mass"
        return Needs(whole=whole, known=self.fewest)

    def on_bins(self, log_q: Logits, log_p: Logits) -> TokenValues:
        """Return the divergence of each token between bins, of which the last stands for many tokens."""
        return self.divergence(log_q, log_p)

    def from_logits(self, student: Logits, teacher: TeacherLogits) -> TokenValues:
        """Return the divergence of each token at the temperature, from finite logits."""
        return self.divergence(log_softmax(student, self.temperature), log_softmax(teacher, self.temperature))

    def divergence_and_grad(self, block: Block) -> tuple[Tensor, Tensor] | None:
        """Return the divergence ``[t]`` and its gradient over student logits at tau = 1, ``[t, v]``.

        None (the default) means: no closed form. May use up the block's buffers. Exact unless a
        value is not finite: that token is taken again by autograd through :meth:`from_logits`.
        """
        return None

    def mended(self, value: Tensor, grad: Tensor, block: Block) -> None:
        """Improve the values of a closed form in place, if there is need; nothing by default."""

    def token_loss(self, tok: Tokens) -> TokenValues:
        """Return the divergence at the temperature, times tau^2 if asked."""
        if tok.coarse is not None:
            student = finite_logits(tok.student)
            return self.on_bins(bins_of(student, tok.coarse.ids), tok.coarse.log_probs.to(student.dtype))
        assert tok.teacher is not None, "a divergence declares needs().teacher"
        value = self.from_logits(finite_logits(tok.student), finite_logits(tok.teacher.detach()))
        return value if self._scale == 1.0 else value * self._scale

    @torch.no_grad()
    def parts_and_grad(self, tok: Tokens) -> tuple[dict[str, Tensor], Tensor] | None:
        """Take value and gradient in closed form where the divergence offers one; on the CPU.

        Elsewhere autograd it is: mending single tokens would make the host wait for the device.
        """
        if tok.coarse is not None:
            value, grad = value_and_grad(self.on_bins, finite_logits(tok.student), tok.coarse)
            return {self.name: value}, grad
        assert tok.teacher is not None, "a divergence declares needs().teacher"
        if not tok.student.is_cpu:
            return None
        block = Block(widen(tok.student), widen(tok.teacher), self.temperature)
        closed = self.divergence_and_grad(block)
        if closed is None:
            return None
        tok.watched.update(block.watched)
        value, grad = closed
        self.mended(value, grad, block)
        self._redo(value, grad, block)
        if self._scale != 1.0:
            value *= self._scale
        if self._scale != self.temperature:
            grad *= self._scale / self.temperature
        return {self.name: value}, grad

    def _redo(self, value: Tensor, grad: Tensor, block: Block) -> None:
        """Take tokens whose value is not finite again, by autograd."""
        broken = torch.nonzero(~torch.isfinite(value)).squeeze(1)
        if len(broken):
            student, teacher = (finite_logits(side) for side in block.logits(broken))
            with torch.enable_grad():
                again = self.from_logits(student.requires_grad_(), teacher)
                (slope,) = torch.autograd.grad(again.sum(), student)
            value[broken], grad[broken] = again.detach(), slope * self.temperature

    @property
    def _scale(self) -> float:
        return self.temperature**2 if self.scale_tau2 else 1.0


class StableDivergence(Divergence):
    """A divergence that takes logits as they are, because their difference keeps its digits."""

    faint: ClassVar[float] = 1e-2
    """Values of the closed form below this have lost digits."""

    @abstractmethod
    def between(self, log_q: Logits, log_p: Logits, tau: float) -> TokenValues:
        """Return the divergence of each token between the softmaxes of ``log_q / tau`` and ``log_p / tau``."""

    @abstractmethod
    def faint_values(self, block: Block) -> Tensor:
        """Return the divergence, ``[t]``, where it is small, to some digits; NaN where that fails."""

    def divergence(self, log_q: Logits, log_p: TeacherLogits) -> TokenValues:
        """Return the divergence of each token from student ``log_q`` and teacher ``log_p``."""
        return self.between(log_q, log_p, 1.0)

    def from_logits(self, student: Logits, teacher: TeacherLogits) -> TokenValues:
        """Return the divergence of each token at the temperature, from finite logits."""
        return self.between(student, teacher, self.temperature)

    def mended(self, value: Tensor, grad: Tensor, block: Block) -> None:
        """Take small values again in a form in which less cancels, and tiny ones in the one where nothing does."""
        rows = torch.nonzero(value < self.faint).squeeze(1)
        if not len(rows):
            return
        value[rows] = self.faint_values(block.rows(rows))
        rows = rows[~(value[rows] >= _TINY)]
        if len(rows):
            student, teacher = block.logits(rows)
            value[rows] = self.from_logits(finite_logits(student), finite_logits(teacher))
            grad[rows[value[rows] == 0]] = 0.0


_TINY = 1e-6
