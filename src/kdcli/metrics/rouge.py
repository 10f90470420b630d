"""Rouge-L as MiniLLM and its successors report it."""

from typing import ClassVar

from rapidfuzz.distance import LCSseq

from kdcli.bounded import PERCENT, Bounds
from kdcli.metrics.rouge_base import Rouge
from kdcli.metrics.score import Better
from kdcli.metrics.signature import Option


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
