"""Diversity and length of answers: distinct n-grams, repetition, self-BLEU, length, share cut off."""

import math
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kdcli.bounded import NOT_NEGATIVE, PERCENT, Bounds
from kdcli.metrics.base import TextMetric
from kdcli.metrics.curve import Curve, Series, series
from kdcli.metrics.score import Better, Score, over_answers, ratio


class Distinct(TextMetric):
    """Distinct n-grams over all n-grams of the whole generated set, times 100, for n = 1 to 4.

    Words are split at spaces, case and punctuation kept; n-grams do not cross answers. Taken for
    the answers of each sampling seed, then averaged. It falls as the set grows: compare equal
    numbers of answers only. A number of the whole set, so it has no interval over examples.

    >>> Distinct().compute(predictions=["a b c d a b c d"], references=[""])["distinct_4"]
    80.0
    """

    name: ClassVar[str] = "distinct"
    description: ClassVar[str] = "distinct n-grams over all n-grams of the generated set"
    scores: ClassVar[dict[str, Better]] = {
        "distinct_1": "higher",
        "distinct_2": "higher",
        "distinct_3": "higher",
        "distinct_4": "higher",
    }
    bounds: ClassVar[dict[str, Bounds]] = {
        "distinct_1": PERCENT,
        "distinct_2": PERCENT,
        "distinct_3": PERCENT,
        "distinct_4": PERCENT,
    }
    settings: ClassVar[str] = "tok:space|case:kept|set:seed|agg:mean|x100"
    needs_references: ClassVar[bool] = False
    splits_at_spaces: bool = True

    def measure(self, predictions: list[list[str]], references: list[list[str]], **also: Any) -> list[Score]:
        """Average over sampling seeds the share of distinct n-grams in that seed's answers."""
        sets = [[text.split() for text in answers] for answers in zip(*predictions, strict=True)]
        return [
            Score(f"distinct_{n}", None, ratio(), "higher", corpus=_mean(distinct(words, n) for words in sets))
            for n in range(1, 5)
        ]


def distinct(texts: Iterable[Sequence[str]], n: int) -> float:
    """Return the percentage of distinct n-grams in a set of texts given as words; 0 if there are none.

    >>> distinct(["a b a".split(), "b a".split()], 2)
    66.66666666666667
    """
    grams = [tuple(words[start : start + n]) for words in texts for start in range(len(words) - n + 1)]
    return 100.0 * len(set(grams)) / len(grams) if grams else 0.0


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return math.fsum(listed) / len(listed)


# How long the answers are.


class Length(TextMetric):
    """Mean answer length in words, and its ratio to the mean reference length.

    Words are split at spaces. Neither is better: read it with the other scores, several of
    which reward short or long answers.

    >>> Length().compute(predictions=["one two three"], references=["one two"])
    {'length': 3.0, 'length_ratio': 1.5}
    """

    name: ClassVar[str] = "length"
    description: ClassVar[str] = "mean words per answer, and their ratio to the references' words"
    scores: ClassVar[dict[str, Better]] = {"length": "neither", "length_ratio": "neither"}
    bounds: ClassVar[dict[str, Bounds]] = {"length": NOT_NEGATIVE, "length_ratio": NOT_NEGATIVE}
    settings: ClassVar[str] = "unit:word|tok:space|refs:mean|agg:mean"
    splits_at_spaces: bool = True

    def measure(self, predictions: list[list[str]], references: list[list[str]], **also: Any) -> list[Score]:
        """Count the words of each example's answers and references."""
        words = np.array([_mean_words(answers) for answers in predictions])
        reference_words = np.array([_mean_words(valid) for valid in references])
        if not reference_words.any():
            raise self._refuse("METRIC-03", "the references hold no words", "give references with text")
        lengths = np.stack([words, np.ones_like(words)], axis=-1)
        ratios = np.stack([words, reference_words], axis=-1)
        each = np.array([[float(len(answer.split())) for answer in answers] for answers in predictions])
        one, other = (
            np.stack([each, np.broadcast_to(column[:, None], each.shape)], axis=-1)
            for column in (np.ones_like(words), reference_words)
        )
        return [
            Score("length", lengths, ratio(), "neither", answers=one),
            Score("length_ratio", ratios, ratio(), "neither", answers=other),
        ]

    def curves(self, predictions: list[list[str]], references: list[list[str]], **also: Any) -> list[Curve]:
        """Return the histograms of answer and reference lengths, in shares of the texts.

        Its bars hold 0, 1, 2 to 3, 4 to 7 words, and so on: each twice as many lengths as the one before.
        """
        sides = {"answers": _doublings(predictions), "references": _doublings(references)}
        count = max(int(places.max()) for places in sides.values()) + 1
        bars = tuple(_histogram(label, places, count) for label, places in sides.items())
        title = "Length of answers and references"
        return [Curve("lengths", title, "words", "share of the texts", bars, "bars", ticks=_names(count))]


def _doublings(texts: Sequence[Sequence[str]]) -> NDArray[np.int64]:
    """Return the bar each text belongs to: 0 for no word, k for 2^(k-1) up to, without, 2^k words."""
    return np.array([len(text.split()).bit_length() for several in texts for text in several], dtype=np.int64)


def _histogram(label: str, places: NDArray[np.int64], bars: int) -> Series:
    count = np.bincount(places, minlength=bars)
    return series(label, np.arange(bars), count / len(places), count=count)


def _names(bars: int) -> tuple[str, ...]:
    wide = [f"{2 ** (bar - 1)}–{2**bar - 1}" for bar in range(2, bars)]
    return ("0", "1", *wide)[:bars]


def _mean_words(texts: Sequence[str]) -> float:
    return math.fsum(len(text.split()) for text in texts) / len(texts)


# How much an answer repeats itself.


class Repetition(TextMetric):
    """Share of an answer's groups of four words that occurred in it before, times 100.

    ``1 - distinct / all`` over the 4-grams of one answer, the mean over answers and examples; words are
    split at spaces, case and punctuation kept. An answer of fewer than four words repeats nothing and
    counts 0. Loops show here, where distinct_4 looks at the whole set at once. Source: Welleck et al.
    2020, seq-rep-4.

    >>> Repetition().compute(predictions=["a b c d a b c d"], references=[""])["repetition"]
    20.0
    """

    name: ClassVar[str] = "repetition"
    description: ClassVar[str] = "share of an answer's 4-grams that occur earlier in it"
    scores: ClassVar[dict[str, Better]] = {"repetition": "lower"}
    bounds: ClassVar[dict[str, Bounds]] = {"repetition": PERCENT}
    settings: ClassVar[str] = "n:4|tok:space|case:kept|agg:mean|x100"
    needs_references: ClassVar[bool] = False
    splits_at_spaces: bool = True

    def measure(self, predictions: list[list[str]], references: list[list[str]], **also: Any) -> list[Score]:
        """Average over answers and examples the share of repeated 4-grams."""
        values = np.array([[repetition(answer) for answer in answers] for answers in predictions])
        return [over_answers("repetition", values, "lower", scale=100.0)]


def repetition(text: str, n: int = 4) -> float:
    """Return the share of a text's n-grams that occurred before in it, between 0 and 1.

    >>> repetition("no no no", 1)
    0.6666666666666666
    """
    words = text.split()
    grams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    return (len(grams) - len(set(grams))) / len(grams) if grams else 0.0


# Scripts that write no spaces between words, in which counting what stands between spaces counts no words.


UNSPACED_SHARE = 0.05
"""Above this share of letters in such scripts, a number that follows from spaces carries a note."""

_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff66-\uff9d\U00020000-\U0003ffff]"
)
"""Thai, Lao, Tibetan, Burmese, Khmer, Japanese syllables, Chinese characters."""


def unspaced_share(texts: Iterable[str]) -> float:
    """Return which share of the letters and digits belong to scripts without spaces between words.

    >>> unspaced_share(["ab 你好"]), unspaced_share(["مرحبا بالعالم"])
    (0.5, 0.0)
    """
    letters = unspaced = 0
    for text in texts:
        letters += sum(map(str.isalnum, text))
        unspaced += 0 if text.isascii() else sum(map(str.isalnum, _UNSPACED.findall(text)))
    return unspaced / max(letters, 1)


def unspaced_note(names: Iterable[str], texts: Iterable[str]) -> str | None:
    """Return the warning for metrics that split texts at spaces; None where they may.

    Args:
        names: the metrics.
        texts: answers and references.

    >>> unspaced_note(["repetition"], ["你好你好"]).partition(";")[0]
    '100% of the letters are of scripts without spaces between words'
    """
    listed, share = list(names), unspaced_share(texts)
    if not listed or share <= UNSPACED_SHARE:
        return None
    return (
        f"{share:.0%} of the letters are of scripts without spaces between words; "
        f"{', '.join(listed)} split at spaces: do not compare or trust these numbers"
    )


def length_unit(texts: Iterable[str]) -> tuple[str, Callable[[str], int]]:
    """Return the unit in which texts can be measured, and what measures one: words, or characters without spaces.

    >>> unit, length = length_unit(["你好世界"])
    >>> unit, length("你好。")
    ('characters', 2)
    """
    if unspaced_share(texts) > UNSPACED_SHARE:
        return "characters", lambda text: sum(map(str.isalnum, text))
    return "words", lambda text: len(text.split())


# How much the generated texts resemble one another.


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


# How many answers never ended.


class TruncationRate(TextMetric):
    """Share of answers that the model did not end itself: cut at the length limit, times 100.

    An answer ends when the model samples its end token. Of a file of answers it is known only where each
    line says so, as ``"ended": true``, or a list with one entry per prediction. ``compute`` takes
    ``ended``, ``[examples][answers]``.

    >>> TruncationRate().compute(predictions=["yes", "no, no, no"], references=["", ""], ended=[[True], [False]])
    {'truncation_rate': 50.0}
    """

    name: ClassVar[str] = "truncation_rate"
    description: ClassVar[str] = "share of answers without end token, cut at the length limit"
    scores: ClassVar[dict[str, Better]] = {"truncation_rate": "lower"}
    bounds: ClassVar[dict[str, Bounds]] = {"truncation_rate": PERCENT}
    settings: ClassVar[str] = "agg:mean|x100"
    needs_references: ClassVar[bool] = False
    extra_inputs: tuple[str, ...] = ("ended",)

    def measure(self, predictions: list[list[str]], references: list[list[str]], **also: Any) -> list[Score]:
        """Count the answers of each example that were cut."""
        cut = np.array([[float(not ended) for ended in answers] for answers in also["ended"]])
        if cut.shape != (len(predictions), len(predictions[0])):
            what = f'"ended" has shape {list(cut.shape)}, expected [{len(predictions)}, {len(predictions[0])}]'
            raise self._refuse("METRIC-03", what, "give one entry for every answer")
        return [over_answers("truncation_rate", cut, "lower", scale=100.0)]
