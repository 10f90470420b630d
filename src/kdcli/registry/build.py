"""Builds a loss, source or score from its term of a spec string, and prints a built one back."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from pydantic import ValidationError

from kdcli.errors import InputError, KDError, UsageError
from kdcli.registry.options import Plugin, nested_kind, no_such_option, option_error, out_of_bounds, value_text
from kdcli.registry.registry import LOSSES, SCORES, SOURCES, Registry
from kdcli.registry.spec import ObjectiveSpec, Term, parse_objective
from kdcli.text import one_line

_LARGEST = 3.4e38
"""About the greatest number of float32, in which objectives are computed."""

_Part = TypeVar("_Part", bound=Plugin)


def build_term(kind: type[_Part], term: Term) -> _Part:
    """Build the part of a class from the options of a term.

    Raises:
        UsageError: an unknown option, or a value out of bounds; says what there is.
        InputError: a guest that cannot be built.
    """
    return build_plugin(kind, _fold(kind, term), one_line(str(term)))


def build_named(registry: Registry, term: Term, needs: type) -> Any:
    """Build the part that a term names, and see that it declares what it needs.

    Args:
        registry: where its name is looked up.
        term: name and options.
        needs: what its ``needs`` must return.

    Raises:
        UsageError: an unknown name or option, or a value out of bounds; says what there is.
        InputError: a guest that cannot be imported or built.
    """
    made = build_term(registry.resolve(term.name), term)
    asked(made, needs, f'{registry.kind} "{one_line(str(term))}"')
    return made


def single(spec: ObjectiveSpec) -> Term | None:
    """Return the one term, without a weight, that a spec string is; None for a sum, a weight or a source.

    >>> single(parse_objective("nll:of=teacher")).name, single(parse_objective("ce+akl"))
    ('nll', None)
    """
    one = len(spec.terms) == 1 and spec.source is None and spec.terms[0].weight == 1.0
    return spec.terms[0] if one else None


def spec_of(part: Plugin) -> str:
    """Return the canonical spec string of a built part: options at their defaults are left out.

    >>> from kdcli.losses.build import build_objective
    >>> spec_of(build_objective("1.0*kl:temperature=2.0,scale_tau2=true"))
    'fkl:temperature=2.0'
    """
    return "+".join(str(replace(_term_of(one), weight=weight)) for weight, one in part.summands)


_REGISTRIES = {registry.kind: registry for registry in (LOSSES, SOURCES, SCORES)}


def _term_of(part: Plugin) -> Term:
    given = {
        name: _text(getattr(part, name))
        for name, field in type(part).model_fields.items()
        if getattr(part, name) != field.default
    }
    unlike = {name: text for name, text in given.items() if text != _text(type(part).model_fields[name].default)}
    return Term(_REGISTRIES[part.part].name_of(type(part)), unlike)


def _text(value: object) -> str:
    if isinstance(value, Plugin):
        text = spec_of(value)
        return text if text.isidentifier() else f"({text})"
    return value_text(value)


def nested_spec(text: str) -> ObjectiveSpec:
    """Parse the value of an option that is a spec string itself, in parentheses or not."""
    inside = text.strip()
    return parse_objective(inside[1:-1] if inside.startswith("(") and inside.endswith(")") else inside)


def build_plugin(kind: type[_Part], values: Mapping[str, Any], where: str) -> _Part:
    """Build a part from values, and turn whatever goes wrong into one line.

    Args:
        kind: its class.
        values: option -> text, or anything the option's type takes.
        where: the term as typed.
    """
    if not isinstance(getattr(kind, "name", None), str):
        fix = f'write `name: ClassVar[str] = "{kind.__name__.lower()}"` into the class'
        raise InputError("PLUG-04", f"{kind.__name__} has no name", where=where, fix=fix)
    try:
        made = kind(**values)
    except ValidationError as error:
        option_error(kind, error.errors()[0], where)
    except KDError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(
            "PLUG-08" if isinstance(error, SystemExit) else "PLUG-04",
            f"cannot be built: {type(error).__name__}: {one_line(str(error))}",
            where=where,
            fix="make the class work in Python first: it is complete and is built from its options",
        ) from error
    for name in kind.model_fields:
        value = getattr(made, name)
        if isinstance(value, float) and not math.isfinite(value):
            raise out_of_bounds(kind, name, str(value), where)
        if isinstance(value, float | int) and abs(value) > _LARGEST:
            what = f"{name} must be a number that float32 can hold, got {one_line(str(value), 40)}"
            raise UsageError("CLI-06", what, where=where, fix=f"choose {name} below 1e38")
    return made


def asked(made: Any, answer: type, where: str) -> None:
    """Refuse a plug-in that does not declare what it needs.

    Args:
        made: the part.
        answer: what its ``needs`` must return.
        where: the term as typed.

    Raises:
        InputError: PLUG-10.
    """
    try:
        needs = made.needs()
    except (Exception, SystemExit) as error:
        what = f"needs() raised {type(error).__name__}: {one_line(str(error))}"
        raise InputError(
            "PLUG-10", what, where=where, fix="correct the plug-in: needs() answers from its options"
        ) from error
    if not isinstance(needs, answer):
        what = f"needs() must return {answer.__module__}.{answer.__name__}, got {one_line(repr(needs), 60)}"
        raise InputError("PLUG-10", what, where=where, fix="correct the plug-in, or leave needs() out")


def _fold(kind: type[Plugin], term: Term) -> dict[str, str]:
    """Move dotted options, as in ``hard.mu=0.7``, into the spec of the option before the dot."""
    folded = {key: value for key, value in term.options.items() if "." not in key}
    for key, value in term.options.items():
        head, dot, tail = key.partition(".")
        if not dot:
            continue
        field = kind.model_fields.get(head)
        if field is None or (inner := nested_kind(field)) is None:
            raise no_such_option(kind, key, one_line(str(term)))
        if head not in folded:
            raise UsageError(
                "CLI-09",
                f"{key} needs {head}=",
                where=one_line(str(term)),
                fix=f"write {term.name}:{head}={inner.part.upper()},{key}={value}",
            )
        folded[head] = _with_option(nested_spec(folded[head]), tail, value, key)
    return folded


def _with_option(spec: ObjectiveSpec, key: str, value: str, typed: str) -> str:
    if len(spec.terms) != 1:
        raise UsageError(
            "CLI-09", f"{typed} is ambiguous: {spec} is a sum", fix="write the option inside the parentheses"
        )
    (inner,) = spec.terms
    if key in inner.options:
        raise UsageError("SPEC-01", f"{typed} is given twice", where=one_line(str(spec)), fix="keep one")
    return f"({replace(inner, options={**inner.options, key: value})})"
