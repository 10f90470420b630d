"""Builds an objective from its spec string, and describes objectives."""

import inspect
from dataclasses import dataclass
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer

from kdcli.errors import UsageError
from kdcli.losses.base import DistillLoss, Needs
from kdcli.registry import catalog
from kdcli.registry.build import build_named, build_plugin, nested_spec, spec_of
from kdcli.registry.options import Option, options
from kdcli.registry.registry import LOSSES
from kdcli.registry.spec import ObjectiveSpec, parse_objective
from kdcli.text import one_line

_SUM = "kdcli.losses.wrappers.combine:Sum"


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
    terms = tuple((term.weight, build_named(LOSSES, term, Needs)) for term in parsed.terms)
    if len(terms) == 1 and terms[0][0] == 1.0:
        return terms[0][1]
    return build_plugin(LOSSES.resolve(_SUM), {"terms": terms}, one_line(str(parsed)))


def _read_nested(value: object) -> object:
    """Turn a spec string given as an option into a loss; leave anything else to the type check."""
    if not isinstance(value, str):
        return value
    spec = nested_spec(value)
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


# Describes a loss from its class: what lists and pages print.


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


def cards() -> list[LossCard]:
    """Return the card of every registered loss."""
    return [describe(name) for name in LOSSES.names()]
