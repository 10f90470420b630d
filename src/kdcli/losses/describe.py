"""Describes a loss from its class: what lists and pages print."""

import inspect
from dataclasses import dataclass

from kdcli import catalog
from kdcli.losses.base import DistillLoss
from kdcli.options import Option, options
from kdcli.registry import LOSSES


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
