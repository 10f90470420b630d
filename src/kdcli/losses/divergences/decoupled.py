"""Decoupled distillation (DKD): the target part and the diversity part of the KL divergence."""

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor

from kdcli.losses.base import FILTERED, DistillLoss, Tokens, finite_logits, widen
from kdcli.losses.divergences.ops import kl
from kdcli.losses.rows import host_may_read
from kdcli.shapes import Logits, TokenLabels, TokenValues

# Splits a distribution into its target and the rest, and the KL divergence with it.


class Split(NamedTuple):
    """One side's logits, split at the target; a constant a token drops out of everything.

    Args:
        target: the target's logit, ``[t, 1]``.
        mass: log-sum-exp of the other logits, ``[t, 1]``.
        rest: the logits, nothing left in the target's column, ``[t, v]``.
    """

    target: Tensor
    mass: Tensor
    rest: Tensor

    @property
    def pair(self) -> Tensor:
        """Logits of target and rest, ``[t, 2]``."""
        return torch.cat((self.target, self.mass), dim=1)

    @property
    def target_probability(self) -> Tensor:
        """p_g, ``[t, 1]``."""
        return torch.sigmoid(self.target - self.mass)

    @property
    def rest_probability(self) -> Tensor:
        """1 - p_g without cancellation, ``[t, 1]``."""
        return torch.sigmoid(self.mass - self.target)


class Parts(NamedTuple):
    """The two parts of a KL divergence, each ``[t]``."""

    target: Tensor
    diversity: Tensor


@dataclass(frozen=True)
class Weighing:
    """How the two parts enter a loss.

    Args:
        target: weight of the target part, a number or one per token, ``[t]``.
        diversity: weight of the diversity part, likewise.
        reverse: the student leads: KL(q || p) in place of KL(p || q).
        keep_mass: the diversity part is multiplied by the leading side's mass off the target.
    """

    target: float | Tensor
    diversity: float | Tensor
    reverse: bool = False
    keep_mass: bool = False

    def take(self, rows: Tensor) -> "Weighing":
        """Return the weighing of some of the tokens."""
        target, diversity = (w[rows] if isinstance(w, Tensor) else w for w in (self.target, self.diversity))
        return replace(self, target=target, diversity=diversity)


def finite(logits: Logits, tau: float = 1.0) -> Logits:
    """Return the logits over tau, at least in fp32, minus infinity replaced by a finite floor."""
    wide = finite_logits(logits)
    return wide if tau == 1.0 else wide / tau


def split_at(logits: Logits, labels: TokenLabels) -> Split:
    """Split finite logits at the targets; differentiable.

    >>> split = split_at(torch.tensor([[110.0, 0.0, 0.0]]), torch.tensor([0]))
    >>> round((split.mass - torch.tensor([[110.0, 0.0, 0.0]]).logsumexp(1)).item(), 4)
    -109.3069
    """
    index = labels[:, None]
    rest = logits.scatter(1, index, FILTERED)
    return Split(logits.gather(1, index), torch.logsumexp(rest, dim=1, keepdim=True), rest)


def log_uncertainty(logits: Logits, labels: TokenLabels) -> TokenValues:
    """Return log(1 - p_g) of each token, g its target.

    >>> round(log_uncertainty(torch.tensor([[2.0, 1, 0, -1, -2]]), torch.tensor([0])).exp().item(), 4)
    0.3636
    """
    split = split_at(finite(logits), labels)
    return torch.nn.functional.logsigmoid(split.mass - split.target).squeeze(1)


def parts(student: Logits, teacher: Logits, labels: TokenLabels, weighing: Weighing) -> Parts:
    """Return the two parts of each token, unweighted and differentiable.

    Args:
        student: finite logits, ``[t, v]``.
        teacher: finite logits, ``[t, v]``.
        labels: target ids, ``[t]``.
        weighing: only its ``reverse`` and ``keep_mass`` count here.

    >>> p, q = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.25, 0.5, 0.25]]).log()
    >>> [round(part.item(), 4) for part in parts(q, p, torch.tensor([0]), Weighing(1.0, 1.0, keep_mass=True))]
    [0.1438, 0.0294]
    """
    q, p = split_at(student, labels), split_at(teacher, labels)
    leading, other = (q, p) if weighing.reverse else (p, q)
    empty = leading.mass <= FILTERED / 2
    diversity = kl(leading.rest.masked_fill(empty, 0.0), other.rest.masked_fill(empty, 0.0))
    if weighing.keep_mass:
        diversity = diversity * leading.rest_probability.squeeze(1)
    return Parts(kl(leading.pair, other.pair), diversity)


# Closed-form gradients of the two parts of :mod:`kdcli.losses.divergences.decoupled`.


_SMALL = 1e-2
"""Below this a divergence summed in fp32 is taken again by the cancellation-free form."""


@torch.no_grad()
def parts_and_grad(
    student: Tensor, teacher: Tensor, labels: Tensor, weighing: Weighing, tau: float
) -> tuple[Parts, Tensor]:
    """Return the parts of each token, unweighted, and the gradient of their weighted sum.

    Args:
        student: logits, ``[t, v]``.
        teacher: logits, ``[t, v]``.
        labels: target ids, ``[t]``.
        weighing: weights and direction.
        tau: temperature of both sides.

    Returns:
        the parts, each ``[t]``, and the gradient over student logits, ``[t, v]``.
    """
    if not host_may_read():
        return _total(finite(student), finite(teacher), labels, weighing, tau)
    q, p = (_split(logits, labels, tau) for logits in (student, teacher))
    regular = torch.isfinite(p.target + p.mass + q.target + q.mass).squeeze(1)
    found, grad = _closed(p, q, labels[:, None], weighing)
    again = ~(regular & torch.isfinite(found.diversity))
    if again.any():
        redone, grad[again] = _by_autograd(student[again], teacher[again], labels[again], weighing.take(again), tau)
        found.target[again], found.diversity[again] = redone
    small = found.diversity < _SMALL
    if not _is_zero(weighing.diversity) and small.any():
        rows = finite(student[small], tau), finite(teacher[small], tau), labels[small]
        found.target[small], found.diversity[small] = parts(*rows, weighing)
    return found, grad if tau == 1.0 else grad.div_(tau)


def _total(student: Tensor, teacher: Tensor, labels: Tensor, weighing: Weighing, tau: float) -> tuple[Parts, Tensor]:
    """Return parts and gradient of finite logits, right for all tokens at once: none can be taken again."""
    found = parts(student / tau, teacher / tau, labels, weighing)
    q, p = (_split(logits, labels, tau) for logits in (student, teacher))
    if not _is_zero(weighing.diversity):
        empty = ((q if weighing.reverse else p).mass <= FILTERED / 2 / tau).squeeze(1)
        weighing = replace(weighing, diversity=torch.where(empty, 0.0, weighing.diversity))
    _, grad = _closed(p, q, labels[:, None], weighing)
    grad = torch.where(student <= FILTERED / 2, 0.0, grad)
    return found, grad if tau == 1.0 else grad.div_(tau)


def _split(logits: Tensor, labels: Tensor, tau: float) -> Split:
    """Split a copy of the logits; nothing is left of the target in the rest."""
    rest = widen(logits) / tau
    index = labels[:, None]
    target = rest.gather(1, index)
    rest.scatter_(1, index, -torch.inf)
    return Split(target, torch.logsumexp(rest, dim=1, keepdim=True), rest)


def _closed(p: Split, q: Split, index: Tensor, weighing: Weighing) -> tuple[Parts, Tensor]:
    """Return parts and gradient; overwrites both splits. Tokens with filtered logits come out as NaN."""
    leading, other = (q, p) if weighing.reverse else (p, q)
    target = kl(leading.pair, other.pair)
    step = _column(weighing.target) * (_log_odds_gap(p, q) if weighing.reverse else _target_excess(p, q))
    q_rest = torch.exp(q.rest - q.mass)
    if _is_zero(weighing.diversity):
        return Parts(target, torch.zeros_like(target)), q_rest.mul_(-step).scatter_(1, index, step)
    kept = leading.rest_probability if weighing.keep_mass else torch.ones_like(step)
    pull = kept * _column(weighing.diversity)
    gap = q.rest.sub_(q.mass).sub_(p.rest).add_(p.mass).scatter_(1, index, 0.0)
    if weighing.reverse:
        diversity = torch.linalg.vecdot(q_rest, gap)
        if weighing.keep_mass:
            step = step - pull * q.target_probability * diversity[:, None]
        grad = gap.sub_(diversity[:, None]).mul_(pull).sub_(step).mul_(q_rest)
    else:
        p_rest = p.rest.sub_(p.mass).exp_()
        diversity = -torch.linalg.vecdot(p_rest, gap)
        grad = q_rest.mul_(pull - step).sub_(p_rest.mul_(pull))
    return Parts(target, diversity * kept.squeeze(1)), grad.scatter_(1, index, step)


def _target_excess(p: Split, q: Split) -> Tensor:
    """Return ``q_g - p_g``, taken from the smaller of the masses on the target and off it."""
    on_target = q.target_probability - p.target_probability
    return torch.where(p.target > p.mass, p.rest_probability - q.rest_probability, on_target)


def _log_odds_gap(p: Split, q: Split) -> Tensor:
    """Return ``q_g (1 - q_g)`` times the student's log odds of the target over the teacher's."""
    return q.target_probability * q.rest_probability * ((q.target - q.mass) - (p.target - p.mass))


def _is_zero(weight: float | Tensor) -> bool:
    return not isinstance(weight, Tensor) and weight == 0


def _column(weight: float | Tensor) -> float | Tensor:
    return weight[:, None] if isinstance(weight, Tensor) else weight


def _by_autograd(
    student: Tensor, teacher: Tensor, labels: Tensor, weighing: Weighing, tau: float
) -> tuple[Parts, Tensor]:
    with torch.enable_grad():
        scaled = finite(student, tau).detach().requires_grad_()
        found = parts(scaled, finite(teacher, tau), labels, weighing)
        total = (weighing.target * found.target + weighing.diversity * found.diversity).sum()
        (grad,) = torch.autograd.grad(total, scaled)
    filtered = torch.isneginf(student)
    return Parts(found.target.detach(), found.diversity.detach()), grad.masked_fill_(filtered, 0.0)


KeepUnc = Annotated[bool, Field(description="keep the factor 1 - p_g on the diversity part, as in the KL divergence")]


class DecoupledLoss(DistillLoss):
    """A weighted sum of the target part and the diversity part of a KL divergence."""

    zero_at_equal: ClassVar[bool] = True

    temperature: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="softmax temperature tau of both sides")
    ] = 1.0
    scale_tau2: Annotated[bool, Field(description="multiply by tau^2, so that gradients keep their size")] = True
    reverse: Annotated[bool, Field(description="the student leads: parts of the reverse KL divergence")] = False

    @abstractmethod
    def weighing(self) -> Weighing:
        """Return the direction and the weights of the two parts."""

    def token_loss(self, tok: Tokens) -> TokenValues:
        """Return the weighted sum of the parts."""
        first, *others = self.parts(tok).values()
        return sum(others, start=first)

    def parts(self, tok: Tokens) -> dict[str, Tensor]:
        """Return the weighted parts, those of weight 0 left out."""
        assert tok.teacher is not None, "needs().teacher is declared"
        student, teacher = (finite(logits, self.temperature) for logits in (tok.student, tok.teacher))
        return self._named(parts(student, teacher, tok.labels, self.weighing()))

    def parts_and_grad(self, tok: Tokens) -> tuple[dict[str, Tensor], Tensor] | None:
        """Return the weighted parts and the gradient of their sum, in closed form."""
        assert tok.teacher is not None, "needs().teacher is declared"
        found, grad = parts_and_grad(tok.student, tok.teacher, tok.labels, self.weighing(), self.temperature)
        return self._named(found), grad if self._scale == 1.0 else grad.mul_(self._scale)

    def _named(self, found: Parts) -> dict[str, Tensor]:
        weighing = self.weighing()
        weighted = (("tkd", weighing.target, found.target), ("dkd_div", weighing.diversity, found.diversity))
        return {name: values * (weight * self._scale) for name, weight, values in weighted if weight != 0.0}

    @property
    def _scale(self) -> float:
        return self.temperature**2 if self.scale_tau2 else 1.0


class TargetKD(DecoupledLoss):
    """Target part of the KL divergence: the target against everything else.

    With g the target of the token, it is the KL divergence of the two-way distributions
    ``(p_g, 1 - p_g)`` and ``(q_g, 1 - q_g)``; how the rest is spread does not count. Known as
    TCKD in decoupled distillation for image classes and as TKD in adaptive teaching.

    >>> import torch
    >>> tok = Tokens(torch.tensor([0]), torch.tensor([[0.5, 1.5, 0.0]]), torch.tensor([[2.0, 1.0, 0.0]]))
    >>> round(TargetKD().token_loss(tok).item(), 4)
    0.4247
    """

    name: ClassVar[str] = "tkd"
    formula: ClassVar[str] = "p_g log(p_g/q_g) + (1-p_g) log((1-p_g)/(1-q_g)), g the target"
    reference: ClassVar[str] = "Zhao et al. 2022 (DKD, CVPR), TCKD; Zhong et al. 2024 (arXiv 2402.11890), TKD"
    cost: ClassVar[str] = "about 20 operations per vocabulary entry; one more log-sum-exp per side"

    def weighing(self) -> Weighing:
        """The target part alone."""
        return Weighing(target=1.0, diversity=0.0, reverse=self.reverse)


class DiversityKD(DecoupledLoss):
    """Diversity part of the KL divergence: how probability is spread off the target.

    With p^ and q^ the distributions over all tokens but the target g, each renormalised, it is
    ``KL(p^ || q^)``. In the KL divergence this term carries the factor ``1 - p_g``, which
    vanishes for a certain teacher; here it is dropped unless ``keep_unc=true``. With a single
    other token, or a teacher without mass off the target, it is 0. Known as NCKD and as DKD.

    >>> import torch
    >>> tok = Tokens(torch.tensor([0]), torch.tensor([[0.5, 1.5, 0.0]]), torch.tensor([[2.0, 1.0, 0.0]]))
    >>> round(DiversityKD().token_loss(tok).item(), 4)
    0.0226
    """

    name: ClassVar[str] = "dkd_div"
    formula: ClassVar[str] = "sum_{j!=g} p^_j log(p^_j/q^_j), p^_j = p_j/(1-p_g), g the target"
    reference: ClassVar[str] = "Zhao et al. 2022 (DKD, CVPR), NCKD; Zhong et al. 2024 (arXiv 2402.11890), DKD"
    cost: ClassVar[str] = "about 30 operations per vocabulary entry; one more log-sum-exp per side"

    keep_unc: KeepUnc = False

    def weighing(self) -> Weighing:
        """The diversity part alone."""
        return Weighing(target=0.0, diversity=1.0, reverse=self.reverse, keep_mass=self.keep_unc)


class DecoupledKD(DecoupledLoss):
    """Decoupled distillation: target and diversity part with weights of their own.

    ``alpha * TKD + beta * NCKD``, with the factor ``1 - p_g`` of the KL divergence dropped unless
    ``keep_unc=true``; then alpha = beta = 1 is the KL divergence itself. The defaults weigh
    both parts alike, which is what adaptive teaching uses on hard tokens. The published image
    classification runs keep alpha = 1 and tune beta with the data set (8 at temperature 4 on
    CIFAR-100).

    >>> import torch
    >>> tok = Tokens(torch.tensor([0]), torch.tensor([[0.5, 1.5, 0.0]]), torch.tensor([[2.0, 1.0, 0.0]]))
    >>> round(DecoupledKD(beta=8).token_loss(tok).item(), 4)
    0.6057
    """

    name: ClassVar[str] = "decoupled"
    formula: ClassVar[str] = "alpha TKD + beta NCKD"
    reference: ClassVar[str] = "Zhao et al. 2022 (Decoupled Knowledge Distillation, CVPR)"
    cost: ClassVar[str] = "about 35 operations per vocabulary entry; one more log-sum-exp per side"

    alpha: Annotated[float, Field(ge=0, allow_inf_nan=False, description="weight of the target part")] = 1.0
    beta: Annotated[float, Field(ge=0, allow_inf_nan=False, description="weight of the diversity part")] = 1.0
    keep_unc: KeepUnc = False

    @model_validator(mode="after")
    def _something_is_left(self) -> "DecoupledKD":
        if self.alpha == self.beta == 0:
            raise ValueError("alpha and beta are both 0: nothing is left of the loss")
        return self

    def weighing(self) -> Weighing:
        """Both parts, at alpha and beta."""
        return Weighing(self.alpha, self.beta, self.reverse, self.keep_unc)
