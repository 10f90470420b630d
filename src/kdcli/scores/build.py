"""Builds a score from its spec string, and describes scores."""

import inspect
from dataclasses import dataclass

from kdcli.errors import UsageError
from kdcli.registry.build import build_named, single
from kdcli.registry.options import Option, options
from kdcli.registry.registry import SCORES
from kdcli.registry.spec import parse_objective
from kdcli.scores.base import Score, ScoreNeeds
from kdcli.text import one_line


def build_score(text: str) -> Score:
    """Build the score that a spec string names.

    Args:
        text: a name with options, as in ``nll:of=teacher``.

    Raises:
        UsageError: an unknown name or option, or a value out of bounds; says what there is.
        InputError: a guest that cannot be imported or built.

    >>> build_score("nll:of=teacher").of
    'teacher'
    """
    term = single(parse_objective(text))
    if term is None:
        what = f'"{one_line(text)}" is not one score'
        raise UsageError("SPEC-01", what, where="--by", fix="give a name with its options, as in nll:of=teacher")
    return build_named(SCORES, term, ScoreNeeds)


@dataclass(frozen=True)
class ScoreCard:
    """What there is to know about one score.

    Args:
        name: the registered name.
        what: one sentence.
        formula: one line of mathematics.
        reference: paper and section.
        needs: what it is measured with at its defaults, in words.
        options: in the order of the class.
        doc: the class's docstring.
    """

    name: str
    what: str
    formula: str
    reference: str
    needs: tuple[str, ...]
    options: tuple[Option, ...]
    doc: str


def describe(name: str) -> ScoreCard:
    """Return the card of a score.

    Args:
        name: a registered name, or a guest's path.

    Raises:
        UsageError: unknown name.
        InputError: a guest that cannot be imported.

    >>> describe("log_ratio").needs
    ('student', 'teacher')
    """
    found: type[Score] = SCORES.resolve(name)
    return ScoreCard(
        name=SCORES.name_of(found),
        what=getattr(found, "summary", ""),
        formula=getattr(found, "formula", ""),
        reference=getattr(found, "reference", ""),
        needs=in_words(found().needs()),
        options=options(found),
        doc=inspect.getdoc(found) or "",
    )


def cards() -> list[ScoreCard]:
    """Return the card of every registered score."""
    return [describe(name) for name in SCORES.names()]


def in_words(needs: ScoreNeeds) -> tuple[str, ...]:
    """Say what a score is measured with.

    >>> in_words(ScoreNeeds(student=True, held_out=True))
    ('student', 'held-out rows')
    """
    asked = {"student": needs.student, "teacher": needs.teacher, "held-out rows": needs.held_out}
    return tuple(word for word, is_asked in asked.items() if is_asked)
