"""A loss one of whose options changes over training."""

import math
from typing import Annotated, ClassVar

import torch
from pydantic import Field, ValidationError, model_validator

from kdcli.losses.around import Around
from kdcli.losses.base import DistillLoss, Tokens
from kdcli.losses.courses import Kind, Since, Until, check_way, on_course, share_of_way
from kdcli.losses.logits import widen
from kdcli.losses.needs import Needs


class Annealed(Around):
    """A loss whose temperature, or another number of it, runs from a start to an end over training.

    Either direction is possible: from soft to sharp targets, or back. The first step has the start,
    every step from ``until`` on the end, exactly; a constant is ``start`` equal to ``end``. What the number
    is stands in ``metrics.jsonl`` as ``annealed.OPTION``. With ``scale_tau2`` of the loss inside, gradients keep
    their size while the temperature changes.

    >>> loss = Annealed(start=4.0, end=1.0)
    >>> [loss.at(progress).temperature for progress in (0.0, 0.5, 1.0)]
    [4.0, 2.5, 1.0]
    """

    name: ClassVar[str] = "annealed"
    formula: ClassVar[str] = "L with tau = tau(progress), from start to end"
    reference: ClassVar[str] = (
        "Jafari et al. 2021, arXiv:2104.07163 (annealed temperature); courses as for learning rates"
    )
    cost: ClassVar[str] = "that of the loss inside"

    option: Annotated[str, Field(description="number of the loss inside that changes")] = "temperature"
    start: Annotated[float, Field(allow_inf_nan=False, description="its value at first")] = 4.0
    end: Annotated[float, Field(allow_inf_nan=False, description="its value at last")] = 1.0
    course: Kind = "linear"
    since: Since = 0.0
    until: Until = 1.0

    @model_validator(mode="after")
    def _can_change(self) -> "Annealed":
        kind, field = type(self.loss), type(self.loss).model_fields.get(self.option)
        if field is None or type(getattr(self.loss, self.option)) is not float:
            raise ValueError(f"{kind.name} has no number {self.option} to change; wrap the part that has one")
        if self.option != "temperature" and kind.plan is not DistillLoss.plan:
            raise ValueError(f"{self.option} of {kind.name} is used before the step is known; it cannot change")
        if getattr(self.loss, self.option) != field.default:
            raise ValueError(f"{self.option} of {kind.name} would be ignored: start and end set it")
        check_way(self.course, self.start, self.end, self.since, self.until)
        for value in (self.start, self.end):
            try:
                given = {name: getattr(self.loss, name) for name in kind.model_fields}
                kind(**{**given, self.option: value})
            except ValidationError as error:
                raise ValueError(f"{self.option} of {kind.name} cannot be {value:g}: {_first(error)}") from error
        return self

    def value(self, progress: float) -> float:
        """Return the changing number at a share of the run."""
        way = share_of_way(progress, self.since, self.until)
        return on_course(self.course, self.start, self.end, way)

    def at(self, progress: float) -> DistillLoss:
        """Return the loss inside with the number it has now."""
        return self.loss.model_copy(update={self.option: self.value(progress)})

    def needs(self) -> Needs:
        """Return what the loss inside asks for at the start, at the end and between."""
        middle = self.value(math.fsum((self.since, self.until)) / 2)
        first, *others = (
            self.loss.model_copy(update={self.option: value}).needs() for value in (self.start, self.end, middle)
        )
        for other in others:
            first = first | other
        return first

    def shown(self, tok: Tokens) -> Tokens:
        """Let the number be watched; the tokens stay as they are."""
        like = widen(tok.student[:, 0]).detach()
        tok.watched[f"{self.name}.{self.option}"] = torch.full_like(like, self.value(tok.progress))
        return tok


def _first(error: ValidationError) -> str:
    return error.errors()[0]["msg"]
