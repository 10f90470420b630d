"""Decoupled distillation: the target part and the diversity part of the KL divergence, apart."""

from abc import abstractmethod
from typing import Annotated, ClassVar

from pydantic import Field, model_validator
from torch import Tensor

from kdcli.losses.base import DistillLoss, Tokens
from kdcli.losses.target_split import Parts, Weighing, finite, parts
from kdcli.losses.target_split_grad import parts_and_grad
from kdcli.shapes import TokenValues

KeepUnc = Annotated[bool, Field(description="keep the factor 1 - p_g on the diversity part, as in the KL divergence")]


class DecoupledLoss(DistillLoss):
    """A weighted sum of the target part and the diversity part of a KL divergence."""

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
