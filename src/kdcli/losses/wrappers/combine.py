"""Sums of weighted losses."""

from dataclasses import replace
from typing import Annotated, ClassVar

from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from kdcli.losses.base import Dims, DistillLoss, Facts, Matches, Needs, Tokens
from kdcli.losses.build import NestedLoss
from kdcli.losses.composite import hand_on, inside, merged_matches, merged_modules, merged_needs, plan_all, survey_all
from kdcli.shapes import TokenValues

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Sum(DistillLoss):
    """A weighted sum of losses, as in ``0.5*ce+0.5*fkl``.

    The terms keep their own options, surveys and facts. A term of weight 0 is not computed. A sum
    inside a sum is opened up.

    >>> import torch
    >>> from kdcli.losses.build import build_objective
    >>> tok = Tokens(torch.tensor([0]), torch.zeros(1, 4), torch.zeros(1, 4))
    >>> round(build_objective("0.5*ce+0.5*fkl").token_loss(tok).item(), 4)
    0.6931
    """

    name: ClassVar[str] = "sum"
    zero_at_equal: ClassVar[bool] = True
    formula: ClassVar[str] = "sum_i w_i L_i"
    reference: ClassVar[str] = "Hinton et al. 2015 (arXiv 1503.02531): hard and soft targets mixed"
    cost: ClassVar[str] = "that of its terms, and a copy of both sides' logits for each term but the last"

    terms: Annotated[tuple[tuple[Weight, NestedLoss], ...], Field(min_length=1, description="weights and losses")]

    @field_validator("terms")
    @classmethod
    def _open_up(cls, terms: tuple[tuple[float, DistillLoss], ...]) -> tuple[tuple[float, DistillLoss], ...]:
        opened: list[tuple[float, DistillLoss]] = []
        for weight, loss in terms:
            opened += [(weight * share, child) for share, child in loss.summands]
        return tuple(opened)

    @model_validator(mode="after")
    def _something_is_left(self) -> "Sum":
        if not self._children:
            raise ValueError("all weights are 0: nothing is left of the objective")
        return self

    @property
    def summands(self) -> tuple[tuple[float, DistillLoss], ...]:
        """Its terms."""
        return self.terms

    @property
    def _children(self) -> dict[str, DistillLoss]:
        return {label: loss for label, (weight, loss) in zip(self.labels, self.terms, strict=True) if weight > 0}

    @property
    def _on_logits(self) -> dict[str, DistillLoss]:
        return {label: child for label, child in self._children.items() if child.needs().logits}

    @property
    def _weights(self) -> dict[str, float]:
        return {label: weight for label, (weight, _) in zip(self.labels, self.terms, strict=True)}

    @property
    def labels(self) -> tuple[str, ...]:
        """A name for each term: that of its loss, numbered from its second use on."""
        names = [loss.name for _, loss in self.terms]
        return tuple(
            name if name not in names[:index] else f"{name}_{names[: index + 1].count(name)}"
            for index, name in enumerate(names)
        )

    def needs(self) -> Needs:
        """Return what the terms together ask for."""
        return merged_needs(self._children)

    def survey(self, tok: Tokens) -> Facts:
        """Survey the terms that ask for it."""
        return survey_all(self._children, tok)

    def plan(self, facts: Facts) -> Facts:
        """Let each term plan."""
        return plan_all(self._children, facts)

    @property
    def plans_among(self) -> bool:
        """Whether every term can plan for some of the tokens."""
        return all(child.plans_among for child in self._children.values())

    def matches(self, dims: Dims) -> Matches:
        """Return the layers that the terms together compare."""
        return merged_matches(self._children, dims)

    def modules(self, dims: Dims) -> nn.ModuleDict:
        """Return the learned parts of the terms, by label."""
        return merged_modules(self._children, dims)

    def token_loss(self, tok: Tokens) -> TokenValues:
        """Return the weighted sum."""
        first, *others = (self.parts(tok) | self.feature_parts(tok)).values()
        return sum(others, start=first)

    def parts(self, tok: Tokens) -> dict[str, Tensor]:
        """Return the weighted terms on logits by label; a term of several parts gives ``label.part`` each."""
        named: dict[str, Tensor] = {}
        for label, child in self._on_logits.items():
            view = inside(label, child, tok)
            named |= self._weighted(label, child, child.parts(view))
            hand_on(label, child, view, tok)
        return named

    def feature_parts(self, tok: Tokens) -> dict[str, Tensor]:
        """Return the weighted terms on features by label; none while there are no features to see."""
        named: dict[str, Tensor] = {}
        for label, child in self._children.items():
            if child.needs().features and tok.features is not None:
                view = inside(label, child, tok)
                named |= self._weighted(label, child, child.feature_parts(view))
                hand_on(label, child, view, tok)
        return named

    def parts_and_grad(self, tok: Tokens) -> tuple[dict[str, Tensor], Tensor] | None:
        """Add up the closed forms; None unless every term has one."""
        named: dict[str, Tensor] = {}
        total: Tensor | None = None
        children = self._on_logits
        last = list(children)[-1] if children else ""
        for label, child in children.items():
            view = inside(label, child, tok)
            closed = child.parts_and_grad(view if label == last else _copy(view))
            if closed is None:
                return None
            found, grad = closed
            hand_on(label, child, view, tok)
            named |= self._weighted(label, child, found)
            grad = grad.mul_(self._weights[label])
            total = grad if total is None else total.add_(grad)
        return None if total is None else (named, total)

    def _weighted(self, label: str, child: DistillLoss, found: dict[str, Tensor]) -> dict[str, Tensor]:
        single = list(found) == [child.name]
        weight = self._weights[label]
        return {label if single else f"{label}.{part}": weight * values for part, values in found.items()}


def _copy(tok: Tokens) -> Tokens:
    """Copy the logits, which a closed form may overwrite."""
    teacher = None if tok.teacher is None else tok.teacher.clone()
    return replace(tok, student=tok.student.clone(), teacher=teacher)
