"""A loss whose weight changes over training."""

from typing import Annotated, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from kdcli.losses.around import Around, live_zeros
from kdcli.losses.base import Tokens
from kdcli.losses.courses import Kind, Since, Until, check_way, on_course, share_of_way
from kdcli.losses.logits import widen


class Ramp(Around):
    """A loss whose weight runs from a start to an end over training: terms of a sum come in or go out.

    Features first and logits later, or labels more and more, are sums of such terms; ``course=step`` switches
    from one stage to the next at ``until``. While the weight is 0 the loss inside is not computed. What the weight
    is stands in ``metrics.jsonl`` as ``ramp.weight``.

    >>> loss = Ramp(start=1.0, end=0.0, until=0.5)
    >>> [loss.weight(progress) for progress in (0.0, 0.25, 0.5, 1.0)]
    [1.0, 0.5, 0.0, 0.0]
    """

    name: ClassVar[str] = "ramp"
    formula: ClassVar[str] = "w(progress) L"
    reference: ClassVar[str] = (
        "Jiao et al. 2020 (TinyBERT), arXiv:1909.10351, section 3: one kind of loss after the other"
    )
    cost: ClassVar[str] = "that of the loss inside, nothing while its weight is 0"

    start: Annotated[float, Field(ge=0, allow_inf_nan=False, description="weight at first")] = 0.0
    end: Annotated[float, Field(ge=0, allow_inf_nan=False, description="weight at last")] = 1.0
    course: Kind = "linear"
    since: Since = 0.0
    until: Until = 1.0

    @model_validator(mode="after")
    def _leads_somewhere(self) -> "Ramp":
        if self.start == self.end == 0:
            raise ValueError("start and end are 0: nothing is left of the objective")
        check_way(self.course, self.start, self.end, self.since, self.until)
        return self

    def weight(self, progress: float) -> float:
        """Return the weight at a share of the run."""
        return on_course(self.course, self.start, self.end, share_of_way(progress, self.since, self.until))

    def parts(self, tok: Tokens) -> dict[str, Tensor]:
        """Return the loss inside, at the weight."""
        weight = self._watched_weight(tok)
        if weight == 0.0:
            return {self.name: live_zeros(tok.student)}
        first, *others = super().parts(tok).values()
        return {self.name: weight * sum(others, start=first)}

    def parts_and_grad(self, tok: Tokens) -> tuple[dict[str, Tensor], Tensor] | None:
        """Return the loss inside and its gradient, at the weight."""
        weight = self._watched_weight(tok)
        if weight == 0.0:
            return {self.name: live_zeros(tok.student)}, torch.zeros_like(widen(tok.student))
        closed = super().parts_and_grad(tok)
        if closed is None:
            return None
        first, *others = closed[0].values()
        return {self.name: weight * sum(others, start=first)}, closed[1].mul_(weight)

    def feature_parts(self, tok: Tokens) -> dict[str, Tensor]:
        """Return the terms on features of the loss inside, at the weight."""
        if tok.features is None or not self.loss.needs().features:
            return {}
        weight, like = self.weight(tok.progress), torch.zeros(len(tok.labels), device=tok.labels.device)
        tok.watched[f"{self.name}.weight"] = torch.full_like(like, weight)
        if weight == 0.0:
            return {self.feature_name(): like}
        first, *others = super().feature_parts(tok).values()
        return {self.feature_name(): weight * sum(others, start=first)}

    def _watched_weight(self, tok: Tokens) -> float:
        weight = self.weight(tok.progress)
        tok.watched[f"{self.name}.weight"] = torch.full_like(widen(tok.student[:, 0]).detach(), weight)
        return weight
