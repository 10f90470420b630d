"""Rouge-L as MiniLLM and its successors report it."""

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import ClassVar

import numpy as np
from nltk.stem.porter import PorterStemmer
from rouge_score import tokenize, tokenizers
from rouge_score.rouge_scorer import RougeScorer

from kdcli.metrics.base import TextMetric
from kdcli.metrics.score import Better, Score, ratio

DROPPED_SHARE = 0.05
"""Above this share of reference letters and digits outside a-z and 0-9 the number carries a note."""


class RougeL(TextMetric):
    """Longest common subsequence of words, as F-measure: the MiniLLM protocol.

    rouge-score with Porter stemmer; of several references the best counts; plain mean over
    sampling seeds and examples, times 100. Its tokenizer keeps a-z and 0-9 only: text in other
    scripts scores 0, and the score then carries a note. Two empty texts score 0.

    >>> RougeL().compute(predictions=["the cat sat"], references=["the cats sat down"])["rougeL"]
    85.71428571428571
    """

    name: ClassVar[str] = "rougeL"
    description: ClassVar[str] = "longest common subsequence of words with the best reference, F-measure"
    scores: ClassVar[dict[str, Better]] = {"rougeL": "higher"}
    settings: ClassVar[str] = "stem:yes|refs:max|agg:mean|x100"
    libraries: ClassVar[tuple[str, ...]] = ("rouge-score",)

    def measure(self, predictions: list[list[str]], references: list[list[str]]) -> list[Score]:
        """Score each example by the mean over its answers of the best F-measure."""
        scorer = RougeScorer(["rougeL"], tokenizer=_StemmingTokenizer())
        each = [
            [_best(scorer, answer, valid) for answer in answers]
            for answers, valid in zip(predictions, references, strict=True)
        ]
        means = np.array([math.fsum(values) / len(values) for values in each])
        sums, answers = (np.stack([values, np.ones_like(values)], axis=-1) for values in (means, np.array(each)))
        return [Score("rougeL", sums, ratio(100.0), "higher", notes=_script_notes(references), answers=answers)]


def rouge_l(prediction: str, references: Iterable[str]) -> float:
    """Return the best F-measure of one answer over its references, between 0 and 1.

    >>> rouge_l("a dog", ["a cat", "a dog"])
    1.0
    """
    return _best(RougeScorer(["rougeL"], use_stemmer=True), prediction, references)


def dropped_share(texts: Iterable[str]) -> float:
    """Return which share of the letters and digits rouge-score's tokenizer drops.

    >>> dropped_share(["été"])
    0.6666666666666666
    """
    letters = [letter for text in texts for letter in text.lower() if letter.isalnum()]
    return sum(not letter.isascii() for letter in letters) / max(len(letters), 1)


def _best(scorer: RougeScorer, prediction: str, references: Iterable[str]) -> float:
    return float(max(scorer.score(reference, prediction)["rougeL"].fmeasure for reference in references))


def _script_notes(references: list[list[str]]) -> tuple[str, ...]:
    share = dropped_share(text for valid in references for text in valid)
    if share <= DROPPED_SHARE:
        return ()
    return (
        f"rougeL: its tokenizer keeps only a-z and 0-9 and drops {share:.0%} of the references' letters; "
        "do not compare this number",
    )


class _StemmingTokenizer(tokenizers.Tokenizer):
    """rouge-score's own tokenizer, remembering stems and texts it has seen."""

    def __init__(self) -> None:
        self.stem = lru_cache(maxsize=None)(PorterStemmer().stem)
        self._tokens = lru_cache(maxsize=65536)(lambda text: tokenize.tokenize(text, self))

    def tokenize(self, text: str) -> list[str]:
        """Return the stemmed words of a text."""
        return self._tokens(text)
