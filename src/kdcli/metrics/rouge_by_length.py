"""Rouge-L by length of the reference, as S-NI and UnNI are reported."""

from typing import Any, ClassVar

import numpy as np
from scipy.special import stdtrit

from kdcli.bounded import PERCENT, Bounds, score_interval
from kdcli.errors import UsageError
from kdcli.metrics.curve import Curve, series
from kdcli.metrics.rouge import RougeL
from kdcli.metrics.score import Better, Score, over_answers
from kdcli.metrics.signature import Option

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
    also_reads: tuple[str, ...] = ("reference_tokens",)

    def __init__(self, **options: Option) -> None:
        super().__init__(**options)
        unit = self.chosen["length_unit"]
        if unit not in ("tokens", "words"):
            fix = "use tokens or words"
            raise UsageError("METRIC-02", f'no length_unit "{unit}"', where=f"metric {self.name}", fix=fix)
        if unit == "words":
            self.also_reads, self.splits_at_spaces = (), True

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
