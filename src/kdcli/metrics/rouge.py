"""Rouge-1, Rouge-2 and Rouge-L, equal to rouge-score to the last bit."""

import re
import unicodedata
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from rapidfuzz.distance import LCSseq
from rouge_score import tokenizers
from rouge_score.rouge_scorer import RougeScorer
from scipy.special import stdtrit

from kdcli.bounded import PERCENT, Bounds, score_interval
from kdcli.errors import NumericsError, UsageError
from kdcli.metrics import porter
from kdcli.metrics.base import TextMetric
from kdcli.metrics.curve import Curve, series
from kdcli.metrics.score import Array, Better, Score, over_answers
from kdcli.metrics.signature import Option

# What Rouge takes a text for: rouge-score's stemmed words, or characters of any script.


TOKENIZERS = ("words", "char")
STEMMERS = ("porter", "none")

_WORD = re.compile("[a-z0-9]+")
_VALID = re.compile("^[a-z0-9]+$")
_LONGEST_UNSTEMMED = 3


class RougeTokens:
    """Turns texts into numbers, equal ones for equal tokens; remembers every word it has stemmed.

    ``words``: lower case, runs of a-z and 0-9, words of more than three letters stemmed, as rouge-score's
    default tokenizer does. ``char``: lower case after NFKC normalisation, every letter, mark and digit of any script a
    token of its own; nothing is stemmed.

    Args:
        tokenizer: "words" or "char".
        stemmer: "porter" or "none".

    Raises:
        UsageError: another tokenizer or stemmer.

    >>> numbers = RougeTokens()
    >>> numbers("The cats sat"), numbers("a CAT... running"), RougeTokens("char")("你好。")
    ([0, 1, 2], [3, 1, 4], [0, 1])
    """

    def __init__(self, tokenizer: str = "words", stemmer: str = "porter") -> None:
        _check("rouge_tokenizer", tokenizer, TOKENIZERS)
        _check("rouge_stemmer", stemmer, STEMMERS)
        self._numbers = _Numbers(porter.stem if stemmer == "porter" else None)
        self._split = _WORD.findall if tokenizer == "words" else characters

    def __call__(self, text: str) -> list[int]:
        """Return the number of each token of a text."""
        numbers = self._numbers
        return [number for token in self._split(text.lower()) if (number := numbers[token]) >= 0]


class _Numbers(dict):
    """Token -> number of its stem, looked up once per token; -1 for a stem that rouge-score drops."""

    def __init__(self, stem: Callable[[str], str] | None) -> None:
        super().__init__()
        self._stem = stem
        self._stems: dict[str, int] = {}

    def __missing__(self, token: str) -> int:
        self[token] = number = self._number(token)
        return number

    def _number(self, token: str) -> int:
        if self._stem is not None and len(token) > _LONGEST_UNSTEMMED:
            token = self._stem(token)
            if not _VALID.match(token):
                return -1
        return self._stems.setdefault(token, len(self._stems))


def characters(text: str) -> list[str]:
    """Return the letters, marks and digits of a text after NFKC normalisation, in lower case.

    >>> characters("ＡＢ, 你好 42")
    ['a', 'b', '你', '好', '4', '2']
    """
    return [letter for letter in unicodedata.normalize("NFKC", text).lower() if _is_written(letter)]


@lru_cache(maxsize=65536)
def _is_written(letter: str) -> bool:
    return unicodedata.category(letter)[0] in "LMN"


def dropped_share(texts: Iterable[str]) -> float:
    """Return which share of the letters and digits the tokenizer ``words`` drops.

    >>> dropped_share(["été"])
    0.6666666666666666
    """
    kept = dropped = 0
    for text in texts:
        if text.isascii():
            kept += sum(map(str.isalnum, text))
            continue
        letters = [letter for letter in text.lower() if letter.isalnum()]
        plain = sum(map(str.isascii, letters))
        kept, dropped = kept + plain, dropped + len(letters) - plain
    return dropped / max(kept + dropped, 1)


def _check(name: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        raise UsageError("METRIC-02", f'no {name} "{given}"', where="metric rouge", fix=f"use {' or '.join(known)}")


# The same F-measures by rouge-score itself, the reference of the fast implementation.


def reference_f_measure(
    kind: str, prediction: str, references: Iterable[str], *, tokenizer: str = "words", stemmer: str = "porter"
) -> float:
    """Return rouge-score's best F-measure of one answer over its references, between 0 and 1.

    Args:
        kind: "rouge1", "rouge2" or "rougeL".
        prediction: the answer.
        references: valid answers, at least one.
        tokenizer: "words" or "char".
        stemmer: "porter" or "none".

    >>> reference_f_measure("rougeL", "a dog", ["a cat", "a dog"])
    1.0
    """
    own = _Characters() if tokenizer == "char" else None
    scorer = RougeScorer([kind], use_stemmer=stemmer == "porter", tokenizer=own)
    return float(max(scorer.score(reference, prediction)[kind].fmeasure for reference in references))


class _Characters(tokenizers.Tokenizer):
    def tokenize(self, text: str) -> Sequence[str]:
        return characters(text)


# What the Rouge metrics share: tokens, the best reference, the F-measure, and a warning about scripts.


DROPPED_SHARE = 0.05
"""Above this share of reference letters and digits outside a-z and 0-9 the number carries a note."""

CHECKED = 8
"""So many answers of each evaluation are also scored by the installed rouge-score."""


class Rouge(TextMetric):
    """Best F-measure of an answer over its references; a subclass says what two texts have in common.

    Class attributes:
        kind: rouge-score's name for it.
    """

    kind: ClassVar[str]

    @staticmethod
    @abstractmethod
    def overlap(prediction: list[int], reference: list[int]) -> tuple[int, int, int]:
        """Return what both hold in common, what the prediction holds, and what the reference holds."""

    def values(self, predictions: list[list[str]], references: list[list[str]]) -> Array:
        """Return the best F-measure of every answer, between 0 and 1, ``[examples, answers]``.

        Raises:
            NumericsError: the installed rouge-score says something else about one of the first answers.
        """
        tokens = RougeTokens(self.chosen["rouge_tokenizer"], self.chosen["rouge_stemmer"])
        values = np.array(
            [
                self._best([tokens(answer) for answer in answers], [tokens(text) for text in valid])
                for answers, valid in zip(predictions, references, strict=True)
            ]
        )
        for example in range(min(CHECKED, len(predictions))):
            self._check(example, float(values[example, 0]), predictions[example][0], references[example])
        return values

    def measure(self, predictions: list[list[str]], references: list[list[str]], **also: Any) -> list[Score]:
        """Score each example by the mean over its answers of the best F-measure."""
        values = self.values(predictions, references)
        return [over_answers(self.name, values, "higher", scale=100.0, notes=self.script_notes(references))]

    def script_notes(self, references: Iterable[Iterable[str]]) -> tuple[str, ...]:
        """Return a warning where the tokenizer drops much of the references."""
        if self.chosen["rouge_tokenizer"] != "words":
            return ()
        share = dropped_share(text for valid in references for text in valid)
        if share <= DROPPED_SHARE:
            return ()
        return (
            f"{self.name}: its tokenizer keeps only a-z and 0-9 and drops {share:.0%} of the references' letters; "
            "do not compare this number; --rouge-tokenizer char reads every script",
        )

    def _check(self, example: int, ours: float, answer: str, references: list[str]) -> None:
        tokenizer, stemmer = self.chosen["rouge_tokenizer"], self.chosen["rouge_stemmer"]
        theirs = reference_f_measure(self.kind, answer, references, tokenizer=tokenizer, stemmer=stemmer)
        if ours != theirs:
            what = f"example {example}: {ours!r}, but the installed rouge-score says {theirs!r}"
            raise NumericsError("METRIC-08", what, where=f"metric {self.name}", fix="install rouge-score 0.1.2")

    def _best(self, answers: list[list[int]], references: list[list[int]]) -> list[float]:
        return [max(f_measure(*self.overlap(answer, reference)) for reference in references) for answer in answers]


def f_measure(common: int, predicted: int, expected: int) -> float:
    """Return the harmonic mean of precision and recall, rounded as rouge-score rounds it.

    ``2pr / (p + r)`` with ``p = common / predicted`` and ``r = common / expected``; 0 where a side is empty.

    Args:
        common: what both sides hold.
        predicted: what the prediction holds.
        expected: what the reference holds.

    >>> f_measure(2, 3, 4)
    0.5714285714285715
    """
    precision, recall = common / max(predicted, 1), common / max(expected, 1)
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


class RougeL(Rouge):
    """Longest common subsequence of words, as F-measure: the MiniLLM protocol.

    ``F = 2pr / (p + r)``, where p and r are the length of the longest common subsequence over the words
    of the answer and of the reference. Words and Porter stems as rouge-score's, whose number it equals
    to the last bit; of several references the best counts; plain mean over sampling seeds and examples,
    times 100. The tokenizer ``words`` keeps a-z and 0-9 only: text in other scripts scores 0, and the
    score then carries a note. Two empty texts score 0. Source: Lin 2004, section 3.

    Args:
        rouge_tokenizer: "words", or "char" for every letter, mark and digit of any script.
        rouge_stemmer: "porter" or "none"; it touches words of more than three letters only.

    >>> RougeL().compute(predictions=["the cat sat"], references=["the cats sat down"])["rougeL"]
    85.71428571428571
    """

    name: ClassVar[str] = "rougeL"
    kind: ClassVar[str] = "rougeL"
    description: ClassVar[str] = "longest common subsequence of words with the best reference, F-measure"
    scores: ClassVar[dict[str, Better]] = {"rougeL": "higher"}
    bounds: ClassVar[dict[str, Bounds]] = {"rougeL": PERCENT}
    settings: ClassVar[str] = "refs:max|agg:mean|x100"
    options: ClassVar[dict[str, Option]] = {"rouge_tokenizer": "words", "rouge_stemmer": "porter"}
    libraries: ClassVar[tuple[str, ...]] = ("rouge-score", "nltk")

    @staticmethod
    def overlap(prediction: list[int], reference: list[int]) -> tuple[int, int, int]:
        """Return the length of the longest common subsequence, by a bit-parallel algorithm, and both lengths."""
        return LCSseq.similarity(prediction, reference), len(prediction), len(reference)


# Rouge-L by length of the reference, as S-NI and UnNI are reported.


BUCKETS = ("0_5", "6_10", "11_inf")
LAST = np.array([5, 10])
"""Largest length in each bucket but the last."""

NAMES = ("[0, 5]", "[6, 10]", "[11, ∞)")


class RougeLByLength(RougeL):
    """Rouge-L of the examples whose reference has 0 to 5, 6 to 10, and 11 tokens or more.

    MiniLLM splits Super-NaturalInstructions and Unnatural Instructions so, and reports the last. The length
    is that of the example's first reference in tokens of the model, end token left out; answers made
    elsewhere have no tokens, take ``length_unit=words`` for them. All else is rougeL. A bucket without
    examples is left out. Source: Gu et al. 2024 (MiniLLM).

    Args:
        rouge_tokenizer: "words" or "char".
        rouge_stemmer: "porter" or "none".
        length_unit: "tokens" of the model, or "words" split at spaces.

    >>> metric = RougeLByLength(length_unit="words")
    >>> metric.compute(predictions=["a b", "c"], references=["a b", "c d e f g h"])
    {'rougeL_0_5': 100.0, 'rougeL_6_10': 28.57142857142857}
    """

    name: ClassVar[str] = "rougeL_by_length"
    description: ClassVar[str] = "Rouge-L where the reference is short, middling and long"
    scores: ClassVar[dict[str, Better]] = {"rougeL_0_5": "higher", "rougeL_6_10": "higher", "rougeL_11_inf": "higher"}
    bounds: ClassVar[dict[str, Bounds]] = {"rougeL_0_5": PERCENT, "rougeL_6_10": PERCENT, "rougeL_11_inf": PERCENT}
    settings: ClassVar[str] = "refs:max|length:first-ref|agg:mean|x100"
    options: ClassVar[dict[str, Option]] = {
        "rouge_tokenizer": "words",
        "rouge_stemmer": "porter",
        "length_unit": "tokens",
    }
    libraries: ClassVar[tuple[str, ...]] = ("rouge-score", "nltk")
    extra_inputs: tuple[str, ...] = ("reference_tokens",)

    def __init__(self, **options: Option) -> None:
        super().__init__(**options)
        unit = self.chosen["length_unit"]
        if unit not in ("tokens", "words"):
            fix = "use tokens or words"
            raise UsageError("METRIC-02", f'no length_unit "{unit}"', where=f"metric {self.name}", fix=fix)
        if unit == "words":
            self.extra_inputs, self.splits_at_spaces = (), True

    def measure(self, predictions: list[list[str]], references: list[list[str]], **also: Any) -> list[Score]:
        """Keep the statistics of each bucket's examples and set the others to 0."""
        values, bucket = self.values(predictions, references), self._buckets(references, also)
        notes, scores = (*self.script_notes(references), *self._empty(bucket)), []
        for index, name in enumerate(BUCKETS):
            whole, inside = over_answers(f"rougeL_{name}", values, "higher", scale=100.0), bucket == index
            assert whole.sums is not None
            assert whole.answers is not None
            sums, answers = whole.sums * inside[:, None], whole.answers * inside[:, None, None]
            kept = Score(whole.name, sums, whole.finish, "higher", notes=notes, answers=answers, optional=True)
            scores.append(kept)
        return scores

    def curves(self, predictions: list[list[str]], references: list[list[str]], **also: Any) -> list[Curve]:
        """Return the mean of each bucket with its 95 % interval over the bucket's examples."""
        means = 100.0 * self.values(predictions, references).mean(1)
        bucket = self._buckets(references, also)
        filled = [index for index in range(len(BUCKETS)) if (bucket == index).any()]
        inside = [means[bucket == index] for index in filled]
        middle = np.array([each.mean() for each in inside])
        quantile, size = np.array([(stdtrit(len(each) - 1, 0.975), len(each)) for each in inside]).T
        half = quantile * np.array([each.std(ddof=1) if len(each) > 1 else np.nan for each in inside]) / np.sqrt(size)
        low, high = score_interval(middle, half, PERCENT, quantile**2 / size)
        line = series("rougeL", filled, middle, low=low, high=high, count=[len(each) for each in inside])
        x_label = f"length of the reference, {self.chosen['length_unit']}"
        title = "Rouge-L by length of the reference"
        ticks = tuple(f"{name} n={(bucket == index).sum()}" for index, name in enumerate(NAMES))
        return [Curve("rougeL-by-length", title, x_label, "Rouge-L", (line,), "points", ticks=ticks)]

    def _empty(self, bucket: np.ndarray) -> tuple[str, ...]:
        """Return a sentence if there are buckets without examples."""
        names = [name for index, name in enumerate(NAMES) if not (bucket == index).any()]
        if not names:
            return ()
        return (f"{self.name}: no reference has {' or '.join(names)} {self.chosen['length_unit']}",)

    def _buckets(self, references: list[list[str]], also: dict[str, Any]) -> np.ndarray:
        words = self.chosen["length_unit"] == "words"
        lengths = [len(valid[0].split()) for valid in references] if words else also["reference_tokens"]
        return np.searchsorted(LAST, np.asarray(lengths))


# Rouge-1 and Rouge-2: words and pairs of words in common.


class Rouge1(Rouge):
    """Words in common with the best reference, as F-measure, times 100.

    ``F = 2pr / (p + r)``, where p and r are the words in common, each counted as often as on the side that
    has fewer of it, over the words of the answer and of the reference. All else as for rougeL; it equals
    rouge-score's rouge1 to the last bit. Source: Lin 2004, section 2.

    Args:
        rouge_tokenizer: "words" or "char".
        rouge_stemmer: "porter" or "none".

    >>> Rouge1().compute(predictions=["sat the cat"], references=["the cats sat down"])["rouge1"]
    85.71428571428571
    """

    name: ClassVar[str] = "rouge1"
    kind: ClassVar[str] = "rouge1"
    description: ClassVar[str] = "words in common with the best reference, F-measure"
    scores: ClassVar[dict[str, Better]] = {"rouge1": "higher"}
    bounds: ClassVar[dict[str, Bounds]] = {"rouge1": PERCENT}
    settings: ClassVar[str] = "refs:max|agg:mean|x100"
    options: ClassVar[dict[str, Option]] = {"rouge_tokenizer": "words", "rouge_stemmer": "porter"}
    libraries: ClassVar[tuple[str, ...]] = ("rouge-score", "nltk")

    @staticmethod
    def overlap(prediction: list[int], reference: list[int]) -> tuple[int, int, int]:
        """Count words in common, of the answer, and of the reference."""
        return common_ngrams(prediction, reference, 1)


class Rouge2(Rouge):
    """Pairs of neighbouring words in common with the best reference, as F-measure, times 100.

    As rouge1, with every two neighbouring words in place of a word; a text of one word has no pair and
    scores 0. It equals rouge-score's rouge2 to the last bit. Source: Lin 2004, section 2.

    Args:
        rouge_tokenizer: "words" or "char".
        rouge_stemmer: "porter" or "none".

    >>> Rouge2().compute(predictions=["the cat sat"], references=["the cats sat down"])["rouge2"]
    80.0
    """

    name: ClassVar[str] = "rouge2"
    kind: ClassVar[str] = "rouge2"
    description: ClassVar[str] = "pairs of words in common with the best reference, F-measure"
    scores: ClassVar[dict[str, Better]] = {"rouge2": "higher"}
    bounds: ClassVar[dict[str, Bounds]] = {"rouge2": PERCENT}
    settings: ClassVar[str] = "refs:max|agg:mean|x100"
    options: ClassVar[dict[str, Option]] = {"rouge_tokenizer": "words", "rouge_stemmer": "porter"}
    libraries: ClassVar[tuple[str, ...]] = ("rouge-score", "nltk")

    @staticmethod
    def overlap(prediction: list[int], reference: list[int]) -> tuple[int, int, int]:
        """Count pairs in common, of the answer, and of the reference."""
        return common_ngrams(prediction, reference, 2)


def common_ngrams(prediction: list[int], reference: list[int], n: int) -> tuple[int, int, int]:
    """Count the n-grams that both texts hold, and those of each.

    >>> common_ngrams([1, 2, 1], [1, 1, 1], 1)
    (2, 3, 3)
    """
    ours, theirs = _ngrams(prediction, n), _ngrams(reference, n)
    return (ours & theirs).total(), ours.total(), theirs.total()


def _ngrams(tokens: list[int], n: int) -> Counter[tuple[int, ...]]:
    return Counter(zip(*(tokens[start:] for start in range(n)), strict=False))
