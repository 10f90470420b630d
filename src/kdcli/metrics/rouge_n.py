"""Rouge-1 and Rouge-2: words and pairs of words in common."""

from collections import Counter
from typing import ClassVar

from kdcli.bounded import PERCENT, Bounds
from kdcli.metrics.rouge_base import Rouge
from kdcli.metrics.score import Better
from kdcli.metrics.signature import Option


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
