"""Wrappers that change an option or a weight over training."""

import math
from typing import Annotated, ClassVar, Literal, TypeAlias

import torch
from pydantic import Field, ValidationError, model_validator
from torch import Tensor

from kdcli.losses.base import DistillLoss, Needs, Tokens, widen
from kdcli.losses.wrappers.route import LossWrapper, live_zeros

# Courses of a number over training, from a start to an end, exact at both.


Course: TypeAlias = Literal["linear", "cosine", "exponential", "step"]

Since = Annotated[float, Field(ge=0, lt=1, description="share of the run at which the change begins")]
Until = Annotated[float, Field(gt=0, le=1, description="share of the run at which the change ends")]
Kind = Annotated[Course, Field(description="way from start to end; a step jumps at `until`")]


def interpolate(course: Course, start: float, end: float, share: float) -> float:
    """Return the value of a schedule after a share of it, from 0 to 1.

    linear ``(1-x) start + x end``; cosine the same with ``x = (1 - cos pi x) / 2``; exponential
    ``start^(1-x) end^x``, for numbers above 0; step ``start`` before the end of the way.

    >>> [interpolate("exponential", 4.0, 1.0, share) for share in (0.0, 0.5, 1.0)]
    [4.0, 2.0, 1.0]
    """
    if course == "step":
        return end if share >= 1.0 else start
    if course == "exponential":
        return start ** (1.0 - share) * end**share
    if course == "cosine":
        share = 0.5 * (1.0 - math.cos(math.pi * share))
    return (1.0 - share) * start + share * end


def share_of_way(progress: float, since: float, until: float) -> float:
    """Return the share of the way done at a share of the run, from 0 to 1.

    >>> share_of_way(0.3, 0.2, 0.4), share_of_way(0.1, 0.2, 0.4), share_of_way(1.0, 0.2, 0.4)
    (0.4999999999999999, 0.0, 1.0)
    """
    if progress >= until:
        return 1.0
    return max(0.0, (progress - since) / (until - since))


def check_way(course: Course, start: float, end: float, since: float, until: float) -> None:
    """Refuse a schedule that does not end after it begins, or an exponential one from or to 0.

    Raises:
        ValueError: in words for the user.
    """
    if since >= until:
        raise ValueError(f"since must lie before until, got {since:g} and {until:g}")
    if course == "exponential" and min(start, end) <= 0:
        raise ValueError(f"an exponential course never leaves or reaches 0, got {start:g} to {end:g}; take linear")


class Annealed(LossWrapper):
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
        "Jafari et al. 2021, arXiv:2104.07163 (annealed temperature); schedules as for learning rates"
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
        return interpolate(self.course, self.start, self.end, way)

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
        """Log the number; the tokens stay as they are."""
        like = widen(tok.student[:, 0]).detach()
        tok.logged[f"{self.name}.{self.option}"] = torch.full_like(like, self.value(tok.progress))
        return tok


def _first(error: ValidationError) -> str:
    return error.errors()[0]["msg"]


# A loss whose weight changes over training.


class Ramp(LossWrapper):
    """A loss whose weight runs from a start to an end over training: terms of a sum are faded in or out.

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
        return interpolate(self.course, self.start, self.end, share_of_way(progress, self.since, self.until))

    def parts(self, tok: Tokens) -> dict[str, Tensor]:
        """Return the loss inside, at the weight."""
        weight = self._logged_weight(tok)
        if weight == 0.0:
            return {self.name: live_zeros(tok.student)}
        first, *others = super().parts(tok).values()
        return {self.name: weight * sum(others, start=first)}

    def parts_and_grad(self, tok: Tokens) -> tuple[dict[str, Tensor], Tensor] | None:
        """Return the loss inside and its gradient, at the weight."""
        weight = self._logged_weight(tok)
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
        tok.logged[f"{self.name}.weight"] = torch.full_like(like, weight)
        if weight == 0.0:
            return {self.feature_name(): like}
        first, *others = super().feature_parts(tok).values()
        return {self.feature_name(): weight * sum(others, start=first)}

    def _logged_weight(self, tok: Tokens) -> float:
        weight = self.weight(tok.progress)
        tok.logged[f"{self.name}.weight"] = torch.full_like(widen(tok.student[:, 0]).detach(), weight)
        return weight
