"""Exact match, the accuracy of final answers, and token F1 after SQuAD's normalisation."""

import re
import string
from collections import Counter
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from kdcli.bounded import PERCENT, Bounds
from kdcli.metrics.base import TextMetric
from kdcli.metrics.score import Better, Score, over_answers, ratio

NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
"""Removes ASCII punctuation in ``str.translate``."""

SEPARATOR = "###"
"""What stands before the final answer of an explanation."""


class ExactMatch(TextMetric):
    """Share of answers equal to a reference after normalisation, times 100.

    Both sides are lower-cased, ASCII punctuation is removed, and runs of spaces become one;
    articles stay. A match with any reference counts.

    >>> ExactMatch().compute(predictions=["Yes!", "no"], references=["yes", "yes"])["exact_match"]
    50.0
    """

    name: ClassVar[str] = "exact_match"
    description: ClassVar[str] = "share of answers equal to a reference after normalisation"
    scores: ClassVar[dict[str, Better]] = {"exact_match": "higher"}
    bounds: ClassVar[dict[str, Bounds]] = {"exact_match": PERCENT}
    settings: ClassVar[str] = "case:lower|punct:removed|space:one|articles:kept|refs:max|agg:mean|x100"

    def measure(self, predictions: list[list[str]], references: list[list[str]], **also: Any) -> list[Score]:
        """Count the answers of each example that match."""
        hits = np.array(
            [
                [float(exact_match(answer, valid)) for answer in answers]
                for answers, valid in zip(predictions, references, strict=True)
            ]
        )
        answers = np.stack([hits, np.ones_like(hits)], axis=-1)
        count = hits.shape[1]
        return [Score("exact_match", answers.sum(1), ratio(100.0), "higher", answers=answers * count)]


class FinalAnswer(TextMetric):
    """Accuracy of what follows ``###`` in answers that explain first, and the share that has one.

    ``final_answer`` is the share of answers whose text after the last ``###`` equals that of a reference, or a
    reference without one, as exact match compares them, times 100; an answer without one is wrong.
    ``parsed`` is the share of answers with a ``###`` and something behind it, times 100.

    >>> FinalAnswer().compute(predictions=["2 + 2 ### 4", "4"], references=["4", "4"])
    {'final_answer': 50.0, 'parsed': 50.0}
    """

    name: ClassVar[str] = "final_answer"
    description: ClassVar[str] = "share of answers whose text after ### equals a reference's"
    scores: ClassVar[dict[str, Better]] = {"final_answer": "higher", "parsed": "higher"}
    bounds: ClassVar[dict[str, Bounds]] = {"final_answer": PERCENT, "parsed": PERCENT}
    settings: ClassVar[str] = "after:###|case:lower|punct:removed|space:one|articles:kept|refs:max|agg:mean|x100"

    def measure(self, predictions: list[list[str]], references: list[list[str]], **also: Any) -> list[Score]:
        """Count the answers of each example whose end is right, and those that have one."""
        right = [
            [float(same_final_answer(answer, valid)) for answer in answers]
            for answers, valid in zip(predictions, references, strict=True)
        ]
        parsed = [[float(final_answer(answer) is not None) for answer in answers] for answers in predictions]
        return [
            over_answers("final_answer", np.array(right), "higher", scale=100.0),
            over_answers("parsed", np.array(parsed), "higher", scale=100.0),
        ]


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


# Token F1, as SQuAD defines it.


_ARTICLES = re.compile(r"\b(a|an|the)\b")


class TokenF1(TextMetric):
    """Words in common with the best reference after normalisation, as F1, times 100.

    ``F1 = 2pr / (p + r)``, where p and r are the words in common over the words of the answer and of the
    reference. Both sides are lower-cased, ASCII punctuation and the articles a, an, the are removed, and
    words are split at spaces; order does not count. Where a side has no words left, F1 is 1 if both have
    none and 0 otherwise. Source: Rajpurkar et al. 2016, the evaluation script of SQuAD 2.0.

    >>> TokenF1().compute(predictions=["The cat sat!"], references=["a cat"])["token_f1"]
    66.66666666666666
    """

    name: ClassVar[str] = "token_f1"
    description: ClassVar[str] = "words in common with the best reference after normalisation, as F1"
    scores: ClassVar[dict[str, Better]] = {"token_f1": "higher"}
    bounds: ClassVar[dict[str, Bounds]] = {"token_f1": PERCENT}
    settings: ClassVar[str] = "case:lower|punct:removed|articles:removed|refs:max|agg:mean|x100"
    splits_at_spaces: bool = True

    def measure(self, predictions: list[list[str]], references: list[list[str]], **also: Any) -> list[Score]:
        """Score each example by the mean over its answers of the best F1."""
        values = [
            [token_f1(answer, valid) for answer in answers]
            for answers, valid in zip(predictions, references, strict=True)
        ]
        return [over_answers("token_f1", np.array(values), "higher", scale=100.0)]


def token_f1(prediction: str, references: Iterable[str]) -> float:
    """Return the best F1 of one answer over its references, between 0 and 1.

    >>> token_f1("4 apples", ["four", "4"])
    0.6666666666666666
    """
    answer = squad_words(prediction)
    return max(_f1(answer, squad_words(reference)) for reference in references)


def squad_words(text: str) -> list[str]:
    """Lower-case, remove ASCII punctuation, then articles, and split at spaces.

    >>> squad_words("The U.S., an  ally")
    ['us', 'ally']
    """
    return _ARTICLES.sub(" ", text.lower().translate(NO_PUNCTUATION)).split()


def _f1(answer: list[str], reference: list[str]) -> float:
    if not answer or not reference:
        return float(answer == reference)
    common = (Counter(answer) & Counter(reference)).total()
    if common == 0:
        return 0.0
    precision, recall = common / len(answer), common / len(reference)
    return 2 * precision * recall / (precision + recall)
