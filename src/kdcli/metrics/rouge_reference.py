"""The same F-measures by rouge-score itself: what the fast road is held against."""

from collections.abc import Iterable, Sequence

from rouge_score import tokenizers
from rouge_score.rouge_scorer import RougeScorer

from kdcli.metrics.rouge_tokens import characters


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
