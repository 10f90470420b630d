"""Options of plug-ins (losses, sources): parsed from specs, described for help and messages."""

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, ClassVar, Literal, NoReturn, TypeVar, get_args, get_origin

import annotated_types
from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined

from kdcli.errors import UsageError
from kdcli.text import one_line


class Plugin(BaseModel):
    """Something that a spec string names; its fields are its options.

    Class attributes:
        part: the word for its kind, "loss" or "source".
        name: the registered name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    part: ClassVar[str]
    name: ClassVar[str]

    @property
    def summands(self) -> Sequence[tuple[float, "Plugin"]]:
        """The weighted parts that it is the sum of: itself, unless it is a sum."""
        return ((1.0, self),)


_Record = TypeVar("_Record")


def earlier_names(**names: str) -> Callable[[type[_Record]], type[_Record]]:
    """Let plug-ins that were written for an earlier version make and read a dataclass by the names it had then.

    Args:
        names: earlier name -> field.

    >>> from dataclasses import replace
    >>> @earlier_names(colour="color")
    ... @dataclass(frozen=True)
    ... class Ink:
    ...     color: str = "black"
    >>> Ink(colour="red"), replace(Ink(), colour="blue").color, Ink().colour
    (Ink(color='red'), 'blue', 'black')
    """

    def extend(kind: type[_Record]) -> type[_Record]:
        make = kind.__init__

        def init(self: _Record, *values: Any, **fields: Any) -> None:  # not wrapped: its signature is wider
            given = {field: fields.pop(name) for name, field in names.items() if name in fields}
            make(self, *values, **{**fields, **given})

        kind.__init__ = init
        for name, field in names.items():
            setattr(kind, name, property(attrgetter(field)))
        return kind

    return extend


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


def options(part: type[Plugin]) -> tuple[Option, ...]:
    """Return the options of a part's class, from its fields.

    >>> from pydantic import Field
    >>> class Dice(Plugin):
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
    if names := _choices(field):
        return "|".join(names)
    annotation: Any = _without_none(field.annotation)
    nested = nested_kind(field)
    if nested is not None:
        return nested.part
    words = {float: "number", int: "whole number", bool: "true or false", str: "text"}
    return words.get(annotation, str(annotation).replace("typing.", ""))


def _choices(field: FieldInfo) -> tuple[str, ...]:
    """Return the values of an option that has only named ones."""
    annotation: Any = _without_none(field.annotation)
    return tuple(map(str, get_args(annotation))) if get_origin(annotation) is Literal else ()


def _without_none(annotation: Any) -> Any:
    """Return the one type that an option has besides None, or the annotation as it is."""
    kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
    optional = type(None) in get_args(annotation) and len(kinds) == 1
    return kinds[0] if optional else annotation


def nested_kind(field: FieldInfo) -> type[Plugin] | None:
    """Return the class of the parts that an option itself holds; None if it holds a plain value."""
    kinds = [field.annotation, *get_args(field.annotation)]
    kinds += [get_args(kind)[0] for kind in kinds if hasattr(kind, "__metadata__")]
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Plugin)), None)


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
    if isinstance(value, Plugin):
        return value.name
    return str(value).lower() if isinstance(value, bool) else str(value)


# Says in one line what is wrong with an option of a part (a loss, a source).


def option_error(kind: type[Plugin], detail: ErrorDetails, where: str) -> NoReturn:
    """Raise what pydantic found wrong with the options of a part as one line in the user's words.

    Args:
        kind: the class of the part.
        detail: pydantic's first finding.
        where: the term as typed.
    """
    option, got = str(detail["loc"][0]) if detail["loc"] else "", one_line(str(detail["input"]))
    if detail["type"] == "extra_forbidden":
        raise no_such_option(kind, option, where)
    if detail["type"] == "missing":
        raise UsageError("CLI-09", f"{kind.name} needs the option {option}", where=where, fix=f"add {option}=")
    if detail["type"] in ("value_error", "assertion_error"):
        message = str(detail["ctx"]["error"]) if "ctx" in detail else detail["msg"]
        raise UsageError("CLI-06", message, where=where, fix=f"see kd {listing(kind)} show {kind.name}")
    raise out_of_bounds(kind, option, got, where)


def no_such_option(kind: type[Plugin], option: str, where: str) -> UsageError:
    """Return the error for an option that a part does not have; lists those it has."""
    known = list(kind.model_fields)
    near = difflib.get_close_matches(option, known, n=1)
    has = f"it has {', '.join(known)}" if known else "it has none"
    return UsageError(
        "CLI-09",
        f'{kind.name} has no option "{one_line(option)}"; {has}',
        where=where,
        fix=f"did you mean {near[0]}?" if near else "remove it",
    )


def out_of_bounds(kind: type[Plugin], option: str, got: str, where: str) -> UsageError:
    """Return the error for a value that is of the wrong type or outside the option's range."""
    field = kind.model_fields[option]
    kind_text, bounds = type_text(field), bounds_text(field)
    if option == "temperature" and _bound(field, ("ge", "gt")) == ("gt", 0.0):
        return _bad_temperature(kind, got, where)
    if choices := _choices(field):
        near = difflib.get_close_matches(got, choices, n=1)
        fix = f"did you mean {near[0]}?" if near else f"one of {', '.join(choices)}"
        return UsageError("CLI-06", f"{option} must be one of {', '.join(choices)}, got {got}", where=where, fix=fix)
    rule = f"must lie {bounds}" if bounds.startswith("in") else f"must be {bounds}"
    numeric = kind_text in ("number", "whole number")
    if _is_number(got) and math.isfinite(float(got)) and bounds:
        return UsageError("CLI-06", f"{option} {rule}, got {got}", where=where, fix=f"choose {option} {bounds}")
    wanted = f"a finite {kind_text}" if kind_text == "number" else f"a {kind_text}" if numeric else kind_text
    return UsageError(
        "CLI-06", f"{option} must be {wanted}, got {got}", where=where, fix=f"as in {option}={_example(field)}"
    )


def listing(kind: type[Plugin]) -> str:
    """Return the command that lists parts of a kind: losses, sources."""
    return "losses" if kind.part == "loss" else f"{kind.part}s"


def _bad_temperature(kind: type[Plugin], got: str, where: str) -> UsageError:
    if kind.part == "loss" and _is_number(got) and float(got) == 0:
        return UsageError("CLI-03", "temperature must be > 0", where=where, fix="for argmax targets use ce")
    return UsageError(
        "CLI-04", f"temperature must be a finite number > 0, got {got}", where=where, fix="as in temperature=2"
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _example(field: Any) -> str:
    return value_text(field.default) if isinstance(field.default, (int, float, str)) else "1"
