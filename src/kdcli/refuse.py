"""Says in one line what is wrong with an option of a part (a loss, a source)."""

import difflib
import math
from typing import Any, NoReturn

from pydantic_core import ErrorDetails

from kdcli.errors import UsageError
from kdcli.options import Part, bounds_text, type_text, value_text
from kdcli.text import one_line


def explain(kind: type[Part], detail: ErrorDetails, where: str) -> NoReturn:
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


def no_such_option(kind: type[Part], option: str, where: str) -> UsageError:
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


def out_of_bounds(kind: type[Part], option: str, got: str, where: str) -> UsageError:
    """Return the error for a value that is of the wrong type or outside the option's range."""
    field = kind.model_fields[option]
    kind_text, bounds = type_text(field), bounds_text(field)
    if option == "temperature" and bounds == "> 0":
        return _bad_temperature(kind, got, where)
    if "|" in kind_text:
        choices = kind_text.split("|")
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


def listing(kind: type[Part]) -> str:
    """Return the command that lists parts of a kind: losses, sources."""
    return "losses" if kind.part == "loss" else f"{kind.part}s"


def _bad_temperature(kind: type[Part], got: str, where: str) -> UsageError:
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
