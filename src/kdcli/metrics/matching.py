"""How answers are compared: normalisation, exact match, and the final answer behind a separator."""

import string
from collections.abc import Iterable

NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
"""Removes ASCII punctuation in ``str.translate``."""

SEPARATOR = "###"
"""What stands before the final answer of an explanation."""


def normalise(text: str) -> str:
    """Lower-case, remove ASCII punctuation, and reduce runs of spaces to one.

    >>> normalise(" The  End. ")
    'the end'
    """
    return " ".join(text.lower().translate(NO_PUNCTUATION).split())


def exact_match(prediction: str, references: Iterable[str]) -> bool:
    """Say whether an answer equals one of its references after normalisation.

    >>> exact_match("It's  4.", ["its 4"])
    True
    """
    answer = normalise(prediction)
    return any(answer == normalise(reference) for reference in references)


def final_answer(text: str) -> str | None:
    """Return what follows the last separator; None where there is no separator, or nothing behind it.

    >>> final_answer("Two and two are four. ### 4")
    '4'
    >>> final_answer("Two and two are four.") is None
    True
    """
    _, found, last = text.rpartition(SEPARATOR)
    return last.strip() or None if found else None


def same_final_answer(text: str, references: Iterable[str]) -> bool:
    """Say whether the final answer of a text equals that of one of its references, which may be an answer alone.

    >>> same_final_answer("Two and two are four. ### 4.", ["4"])
    True
    >>> same_final_answer("4", ["4"])
    False
    """
    found = final_answer(text)
    return found is not None and exact_match(found, (final_answer(one) or one for one in references))
