"""How much the generated texts resemble one another."""

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, TypeAlias

from kdcli.bounded import PERCENT, Bounds
from kdcli.metrics.base import TextMetric
from kdcli.metrics.score import Better, Score, ratio

_ORDERS = 4
_EPSILON = 0.1
"""Takes the place of 0 matches, as in smoothing method 1 of Chen and Cherry 2014."""

Gram: TypeAlias = tuple[str, ...]
_Peak: TypeAlias = tuple[int, int, int]
"""Largest count of an n-gram in one text, that text, and the largest count in any other."""


class SelfBleu(TextMetric):
    """Mean BLEU-4 of every answer against all other answers of its sampling seed, times 100.

    ``BLEU = BP * exp(mean_n log p_n)``, n = 1 to 4: p_n is the share of an answer's n-grams found in the
    others, each counted at most as often as in the other that has most of it; the brevity penalty BP is
    taken to the other whose length is nearest. 0 matches count as 0.1. Words are split at spaces, case
    and punctuation kept. Taken for the answers of each sampling seed, then averaged. It rises as the set
    grows: compare equal numbers of answers only. A number of the whole set, so it has no interval over
    examples. Source: Zhu et al. 2018, Texygen.

    >>> SelfBleu().compute(predictions=["a b c d e", "a b c d f"], references=["", ""])["self_bleu"]
    66.8740304976422
    """

    name: ClassVar[str] = "self_bleu"
    description: ClassVar[str] = "BLEU-4 of each answer against all others: high where all say the same"
    scores: ClassVar[dict[str, Better]] = {"self_bleu": "lower"}
    bounds: ClassVar[dict[str, Bounds]] = {"self_bleu": PERCENT}
    settings: ClassVar[str] = "n:4|smooth:0.1|tok:space|case:kept|set:seed|agg:mean|x100"
    needs_references: ClassVar[bool] = False
    splits_at_spaces: bool = True

    def measure(self, predictions: list[list[str]], references: list[list[str]], **also: Any) -> list[Score]:
        """Average over sampling seeds the self-BLEU of that seed's answers."""
        sets = [[text.split() for text in answers] for answers in zip(*predictions, strict=True)]
        values = [self_bleu(texts) for texts in sets]
        value = 100.0 * math.fsum(values) / len(values)
        return [Score("self_bleu", None, ratio(), "lower", corpus=value)]


def self_bleu(texts: Sequence[Sequence[str]]) -> float:
    """Return the mean BLEU-4 of each text against all others, given as words; 0 for a single text.

    The counts of each n-gram's two richest texts answer for every text at once, so that the cost grows
    with the words of the set and not with its square.

    Args:
        texts: words of each text.

    >>> self_bleu([["a", "b", "c", "d"]] * 2)
    1.0
    """
    if len(texts) < 2:
        return 0.0
    counts = [[Counter(_ngrams(words, n)) for words in texts] for n in range(1, _ORDERS + 1)]
    peaks = [_peaks(each) for each in counts]
    lengths = sorted(len(words) for words in texts)
    return math.fsum(
        _bleu(
            len(words), [_clipped(each[place], peak, place) for each, peak in zip(counts, peaks, strict=True)], lengths
        )
        for place, words in enumerate(texts)
    ) / len(texts)


def _ngrams(words: Sequence[str], n: int) -> Iterable[Gram]:
    return zip(*(words[start:] for start in range(n)), strict=False)


def _peaks(counts: Sequence[Counter[Gram]]) -> dict[Gram, _Peak]:
    peaks: dict[Gram, _Peak] = {}
    for place, counter in enumerate(counts):
        for gram, count in counter.items():
            most, owner, second = peaks.get(gram, (0, -1, 0))
            peaks[gram] = (count, place, most) if count > most else (most, owner, max(second, count))
    return peaks


def _clipped(counter: Counter[Gram], peaks: dict[Gram, _Peak], place: int) -> tuple[int, int]:
    """Return how many n-grams of a text the others hold too, and how many it has."""
    matches = 0
    for gram, count in counter.items():
        most, owner, second = peaks[gram]
        matches += min(count, second if owner == place else most)
    return matches, counter.total()


def _bleu(length: int, parts: Sequence[tuple[int, int]], lengths: Sequence[int]) -> float:
    if parts[0][0] == 0:
        return 0.0
    logs = [math.log((matches or _EPSILON) / max(total, 1)) for matches, total in parts]
    nearest = _nearest_other(length, lengths)
    penalty = 1.0 if length > nearest else math.exp(1.0 - nearest / length)
    return penalty * math.exp(math.fsum(logs) / len(logs))


def _nearest_other(length: int, lengths: Sequence[int]) -> int:
    """Return the length nearest to a text's own among the others, the shorter of two equally near."""
    place = bisect_left(lengths, length)
    others = [*lengths[max(place - 1, 0) : place], *lengths[place + 1 : place + 2]]
    return min(others, key=lambda other: (abs(other - length), other))
