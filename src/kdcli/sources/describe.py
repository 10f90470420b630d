"""Describes a source from its class: what lists and pages print."""

import inspect
from dataclasses import dataclass

from kdcli.options import Option, options
from kdcli.registry import SOURCES
from kdcli.sources.base import Source, SourceNeeds


@dataclass(frozen=True)
class SourceCard:
    """What there is to know about one source.

    Args:
        name: the registered name.
        what: one sentence.
        reference: paper and section.
        needs: what it asks for at its defaults, in words.
        facts: names of the facts it supplies, at its defaults.
        origins: whose words it supplies, at its defaults.
        fixed: whether every sequence is a row of the data set.
        words: whether a teacher is wanted, and nothing of it but words.
        options: in the order of the class.
        doc: the class's docstring.
    """

    name: str
    what: str
    reference: str
    needs: tuple[str, ...]
    facts: tuple[str, ...]
    origins: tuple[str, ...]
    fixed: bool
    words: bool
    options: tuple[Option, ...]
    doc: str


def describe(name: str) -> SourceCard:
    """Return the card of a source.

    Args:
        name: a registered name, or a guest's path.

    Raises:
        UsageError: unknown name.
        InputError: a guest that cannot be imported.

    >>> describe("student").needs
    ('student',)
    """
    found: type[Source] = SOURCES.resolve(name)
    needs = found().needs()
    return SourceCard(
        name=SOURCES.name_of(found),
        what=getattr(found, "summary", ""),
        reference=getattr(found, "reference", ""),
        needs=in_words(needs),
        facts=tuple(sorted(needs.facts)),
        origins=tuple(sorted(needs.origins)),
        fixed=needs.fixed,
        words=needs.teacher and needs.words,
        options=options(found),
        doc=inspect.getdoc(found) or "",
    )


def cards() -> list[SourceCard]:
    """Return the card of every registered source."""
    return [describe(name) for name in SOURCES.names()]


def in_words(needs: SourceNeeds) -> tuple[str, ...]:
    """Say what a source asks for.

    >>> in_words(SourceNeeds(student=True, monitor="nll"))
    ('student', 'evaluation while training')
    """
    asked = {
        "student": needs.student,
        "teacher": needs.teacher,
        "second corpus": needs.corpus,
        "evaluation while training": bool(needs.monitor),
    }
    return tuple(word for word, is_asked in asked.items() if is_asked)


def supplying(fact: str) -> list[str]:
    """Return the names of the sources that supply a fact.

    >>> supplying("no_such_fact")
    []
    """
    return [card.name for card in cards() if fact in card.facts]


def writing(origin: str) -> list[str]:
    """Return the names of the sources whose sequences are, at their defaults, somebody's words.

    >>> writing("student")[0]
    'student'
    """
    return [card.name for card in cards() if origin in card.origins]
