"""Describes a loss from its class: what lists, pages and error messages print."""

import inspect
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from kdcli import catalog
from kdcli.losses.base import DistillLoss
from kdcli.registry import LOSSES


@dataclass(frozen=True)
class Option:
    """One option of a loss.

    Args:
        name: what stands before ``=`` in the spec string.
        type: "number", "whole number", "true or false", "text", "loss", or the allowed words.
        default: as typed in the spec string; empty when the option must be given.
        bounds: the allowed range, such as ``in [0, 1]`` or ``> 0``; empty when any value will do.
        text: one line on what it does.
    """

    name: str
    type: str
    default: str
    bounds: str
    text: str


@dataclass(frozen=True)
class LossCard:
    """What there is to know about one loss.

    Args:
        name: the registered name.
        aliases: other spellings.
        formula: one line of mathematics.
        reference: paper and equation.
        cost: arithmetic per vocabulary entry.
        options: in the order of the class.
        doc: the class's docstring.
    """

    name: str
    aliases: tuple[str, ...]
    formula: str
    reference: str
    cost: str
    options: tuple[Option, ...]
    doc: str

    @property
    def summary(self) -> str:
        """The first sentence of the docstring, on one line."""
        first = self.doc.split("\n\n")[0]
        return " ".join(first.split())


def describe(name: str) -> LossCard:
    """Return the card of a loss.

    Args:
        name: a registered name, an alias, or a guest's path.

    Raises:
        UsageError: unknown name.
        InputError: a guest that cannot be imported.

    >>> describe("forward_kl").name
    'fkl'
    """
    found: type[DistillLoss] = LOSSES.resolve(name)
    known = LOSSES.name_of(found)
    return LossCard(
        name=known,
        aliases=tuple(alias for alias, target in catalog.LOSS_ALIASES.items() if target == known),
        formula=getattr(found, "formula", ""),
        reference=getattr(found, "reference", ""),
        cost=getattr(found, "cost", ""),
        options=options(found),
        doc=inspect.getdoc(found) or "",
    )


def options(loss: type[DistillLoss]) -> tuple[Option, ...]:
    """Return the options of a loss class, from its fields.

    >>> [option.name for option in options(LOSSES.resolve("fkl"))]
    ['temperature', 'scale_tau2']
    """
    return tuple(
        Option(name, type_text(field), _default_text(field), bounds_text(field), field.description or "")
        for name, field in loss.model_fields.items()
    )


def type_text(field: FieldInfo) -> str:
    """Return the type of an option in a user's words."""
    annotation: Any = _without_none(field.annotation)
    if get_origin(annotation) is Literal:
        return "|".join(str(choice) for choice in get_args(annotation))
    if is_nested(field):
        return "loss"
    words = {float: "number", int: "whole number", bool: "true or false", str: "text"}
    return words.get(annotation, str(annotation).replace("typing.", ""))


def _without_none(annotation: Any) -> Any:
    """Return the one type that an option has beside None, or the annotation as it is."""
    kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
    optional = type(None) in get_args(annotation) and len(kinds) == 1
    return kinds[0] if optional else annotation


def is_nested(field: FieldInfo) -> bool:
    """Whether an option holds a loss itself."""
    kinds = [field.annotation, *get_args(field.annotation)]
    kinds += [get_args(kind)[0] for kind in kinds if hasattr(kind, "__metadata__")]
    return any(isinstance(kind, type) and issubclass(kind, DistillLoss) for kind in kinds)


def bounds_text(field: FieldInfo) -> str:
    """Return the allowed range of a number, as in ``in [0, 1]`` or ``> 0``."""
    low, high = _bound(field, ("ge", "gt")), _bound(field, ("le", "lt"))
    if low and high:
        left = "[" if low[0] == "ge" else "("
        right = "]" if high[0] == "le" else ")"
        return f"in {left}{low[1]:g}, {high[1]:g}{right}"
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    return "".join(f"{signs[kind]} {number:g}" for kind, number in filter(None, (low, high)))


def _bound(field: FieldInfo, kinds: tuple[str, ...]) -> tuple[str, float] | None:
    for constraint in field.metadata:
        if isinstance(constraint, annotated_types.BaseMetadata):
            for kind in kinds:
                number = getattr(constraint, kind, None)
                if number is not None:
                    return kind, float(number)
    return None


def _default_text(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return ""
    return value_text(field.default)


def value_text(value: object) -> str:
    """Return a plain value as typed in a spec string.

    >>> value_text(True), value_text(0.5), value_text("paper")
    ('true', '0.5', 'paper')
    """
    if value is None:
        return "none"
    if isinstance(value, DistillLoss):
        return value.name
    return str(value).lower() if isinstance(value, bool) else str(value)
