"""Builds an objective from its spec string, and prints a built one back."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, ValidationError

from kdcli.errors import InputError, KDError, UsageError
from kdcli.losses.base import DistillLoss
from kdcli.losses.describe import is_nested, value_text
from kdcli.losses.refuse import explain, no_such_option, out_of_bounds
from kdcli.registry import LOSSES
from kdcli.spec import ObjectiveSpec, Term, parse_objective
from kdcli.text import one_line

_SUM = "kdcli.losses.combine:Sum"


def build_objective(spec: str | ObjectiveSpec) -> DistillLoss:
    """Build the loss that a spec string names; its source part is left to others.

    Args:
        spec: as typed, or parsed.

    Raises:
        UsageError: an unknown name or option, or a value out of bounds; says what there is.
        InputError: a guest that cannot be imported or built.

    >>> build_objective("0.5*ce+0.5*akl:mu=0.6").terms[1][1].mu
    0.6
    """
    parsed = parse_objective(spec) if isinstance(spec, str) else spec
    terms = tuple((term.weight, _build_term(term)) for term in parsed.terms)
    if len(terms) == 1 and terms[0][0] == 1.0:
        return terms[0][1]
    return _construct(LOSSES.resolve(_SUM), {"terms": terms}, one_line(str(parsed)))


def spec_of(loss: DistillLoss) -> str:
    """Return the canonical spec string of a loss: options at their defaults are left out.

    >>> spec_of(build_objective("1.0*kl:temperature=2.0,scale_tau2=true"))
    'fkl:temperature=2.0'
    """
    terms = getattr(loss, "terms", ()) if isinstance(loss, LOSSES.resolve(_SUM)) else ((1.0, loss),)
    return "+".join(str(replace(_term_of(child), weight=weight)) for weight, child in terms)


def _term_of(loss: DistillLoss) -> Term:
    given = {
        name: _value_text(getattr(loss, name))
        for name, field in type(loss).model_fields.items()
        if getattr(loss, name) != field.default
    }
    return Term(LOSSES.name_of(type(loss)), given)


def _value_text(value: object) -> str:
    if isinstance(value, DistillLoss):
        text = spec_of(value)
        return text if text.isidentifier() else f"({text})"
    return value_text(value)


def _read_nested(value: object) -> object:
    """Turn a spec string given as an option into a loss; leave anything else to the type check."""
    if not isinstance(value, str):
        return value
    spec = _nested_spec(value)
    if spec.source:
        raise UsageError(
            "SPEC-01",
            f'a source "@{spec.source}" inside an option',
            where=one_line(value),
            fix="put it behind the objective",
        )
    return build_objective(spec)


NestedLoss = Annotated[
    DistillLoss, BeforeValidator(_read_nested), PlainSerializer(lambda loss: spec_of(loss), return_type=str)
]
"""The type of a field that holds a loss: takes a spec string or a built loss, is dumped as a spec string."""


def _nested_spec(text: str) -> ObjectiveSpec:
    inside = text.strip()
    return parse_objective(inside[1:-1] if inside.startswith("(") and inside.endswith(")") else inside)


def _build_term(term: Term) -> DistillLoss:
    kind = LOSSES.resolve(term.name)
    return _construct(kind, _fold(kind, term), one_line(str(term)))


def _fold(kind: type[DistillLoss], term: Term) -> dict[str, str]:
    """Move dotted options, as in ``hard.mu=0.7``, into the spec of the option before the dot."""
    folded = {key: value for key, value in term.options.items() if "." not in key}
    for key, value in term.options.items():
        head, dot, tail = key.partition(".")
        if not dot:
            continue
        field = kind.model_fields.get(head)
        if field is None or not is_nested(field):
            raise no_such_option(kind, key, one_line(str(term)))
        if head not in folded:
            raise UsageError(
                "CLI-09",
                f"{key} needs {head}=",
                where=one_line(str(term)),
                fix=f"write {term.name}:{head}=LOSS,{key}={value}",
            )
        folded[head] = _with_option(_nested_spec(folded[head]), tail, value, key)
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


def _construct(kind: type[DistillLoss], values: Mapping[str, Any], where: str) -> DistillLoss:
    if not isinstance(getattr(kind, "name", None), str):
        fix = f'write `name: ClassVar[str] = "{kind.__name__.lower()}"` into the class'
        raise InputError("PLUG-04", f"{kind.__name__} has no name", where=where, fix=fix)
    try:
        loss = kind(**values)
    except ValidationError as error:
        explain(kind, error.errors()[0], where)
    except KDError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(
            "PLUG-08" if isinstance(error, SystemExit) else "PLUG-04",
            f"cannot be built: {type(error).__name__}: {one_line(str(error))}",
            where=where,
            fix="make the class work in Python first: it defines token_loss and is built from its options",
        ) from error
    for name in kind.model_fields:
        value = getattr(loss, name)
        if isinstance(value, float) and not math.isfinite(value):
            raise out_of_bounds(kind, name, str(value), where)
    return loss
