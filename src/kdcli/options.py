"""Describes the options of a part (a loss, a source) from its class: what lists, pages and messages print."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args, get_origin

import annotated_types
from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined


class Part(BaseModel):
    """Something that a spec string names; its fields are its options.

    Class attributes:
        part: the word for its kind, "loss" or "source".
        name: the registered name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    part: ClassVar[str]
    name: ClassVar[str]


@dataclass(frozen=True)
class Option:
    """One option of a part.

    Args:
        name: what stands before ``=`` in the spec string.
        type: "number", "whole number", "true or false", "text", "loss", "source", or the allowed words.
        default: as typed in the spec string; empty when the option must be given.
        bounds: the allowed range, such as ``in [0, 1]`` or ``> 0``; empty when any value will do.
        text: one line on what it does.
    """

    name: str
    type: str
    default: str
    bounds: str
    text: str


def options(part: type[Part]) -> tuple[Option, ...]:
    """Return the options of a part's class, from its fields.

    >>> from pydantic import Field
    >>> class Dice(Part):
    ...     sides: int = Field(default=6, ge=2, description="faces of the die")
    >>> options(Dice)[0].bounds
    '>= 2'
    """
    return tuple(
        Option(name, type_text(field), _default_text(field), bounds_text(field), field.description or "")
        for name, field in part.model_fields.items()
    )


def type_text(field: FieldInfo) -> str:
    """Return the type of an option in a user's words."""
    annotation: Any = _without_none(field.annotation)
    if get_origin(annotation) is Literal:
        return "|".join(str(choice) for choice in get_args(annotation))
    nested = nested_kind(field)
    if nested is not None:
        return nested.part
    words = {float: "number", int: "whole number", bool: "true or false", str: "text"}
    return words.get(annotation, str(annotation).replace("typing.", ""))


def _without_none(annotation: Any) -> Any:
    """Return the one type that an option has beside None, or the annotation as it is."""
    kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
    optional = type(None) in get_args(annotation) and len(kinds) == 1
    return kinds[0] if optional else annotation


def nested_kind(field: FieldInfo) -> type[Part] | None:
    """Return the class of the parts that an option itself holds; None if it holds a plain value."""
    kinds = [field.annotation, *get_args(field.annotation)]
    kinds += [get_args(kind)[0] for kind in kinds if hasattr(kind, "__metadata__")]
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Part)), None)


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
    if isinstance(value, Part):
        return value.name
    return str(value).lower() if isinstance(value, bool) else str(value)
