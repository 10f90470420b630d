"""Builds a source from its part of the spec string, opens it, and describes sources."""

import inspect
from dataclasses import dataclass
from typing import Annotated, TypeVar

from pydantic import BeforeValidator, PlainSerializer

from kdcli.errors import InputError, UsageError
from kdcli.registry.build import build_named, nested_spec, single, spec_of
from kdcli.registry.options import Option, options
from kdcli.registry.registry import SOURCES
from kdcli.registry.spec import Term
from kdcli.sources.base import Source, SourceContext, SourceNeeds, StepBatches
from kdcli.text import one_line

DATASET = Term("dataset")
"""What an objective without ``@source`` is trained on."""


def build_source(term: Term | str | None) -> Source:
    """Build the source that a term names.

    Args:
        term: what stands behind ``@``, as typed or parsed; None for the data set.

    Raises:
        UsageError: an unknown name or option, or a value out of bounds; says what there is.
        InputError: a guest that cannot be imported or built.

    >>> build_source("student:rate=0.5").rate
    0.5
    """
    parsed = _read(term) if isinstance(term, str) else term or DATASET
    return build_named(SOURCES, parsed, SourceNeeds)


_Windows = TypeVar("_Windows", bound=StepBatches)


def opened(source: Source, context: SourceContext, kind: type[_Windows] = StepBatches) -> _Windows:
    """Open a source, and refuse one of a plug-in that gives something else than it must.

    Args:
        source: the source.
        context: data set, settings and models.
        kind: what must come.

    Raises:
        InputError: PLUG-10.
    """
    windows = source.open(context)
    if not isinstance(windows, kind):
        what = f"open() must return {kind.__module__}.{kind.__name__}, got {type(windows).__name__}"
        raise InputError("PLUG-10", what, where=f"source {spec_of(source)}", fix="correct the plug-in")
    return windows


def tail_of(source: Source) -> str:
    """Return how a source is written behind an objective: nothing for the data set, which is the default.

    >>> tail_of(build_source(None)), tail_of(build_source("student"))
    ('', '@student')
    """
    spec = spec_of(source)
    return "" if spec == str(DATASET) else f"@{spec}"


def _read(text: str) -> Term:
    term = single(nested_spec(text))
    if term is None:
        what = f'"{one_line(text)}" is not one source'
        raise UsageError("SPEC-01", what, fix="write a name with its options, as in (student:temperature=0.7)")
    return term


def _read_nested(value: object) -> object:
    """Turn a spec string given as an option into a source; leave anything else to the type check."""
    return build_source(value) if isinstance(value, str) else value


NestedSource = Annotated[
    Source, BeforeValidator(_read_nested), PlainSerializer(lambda source: spec_of(source), return_type=str)
]
"""The type of a field that holds a source: takes a spec string or a built source, is dumped as a spec string."""


# Describes a source from its class: what lists and pages print.


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
        fixed=needs.offline,
        words=needs.teacher and needs.text_only,
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
    """Return the names of the sources whose sequences are, at their defaults, generated by a model.

    >>> writing("student")[0]
    'student'
    """
    return [card.name for card in cards() if origin in card.origins]
