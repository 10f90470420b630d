"""What the Rouge metrics share: tokens, the best reference, the F-measure, and a warning about scripts."""

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from kdcli.errors import NumericsError
from kdcli.metrics.base import TextMetric
from kdcli.metrics.rouge_reference import reference_f_measure
from kdcli.metrics.rouge_tokens import RougeTokens, dropped_share
from kdcli.metrics.score import Array, Score, over_answers

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
