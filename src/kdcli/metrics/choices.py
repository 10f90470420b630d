"""Metrics of classification: how probable the model finds each of several given answers."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import datasets
import numpy as np
from numpy.typing import NDArray

from kdcli.errors import NumericsError
from kdcli.metrics.base import Metric
from kdcli.metrics.bins import check_bins
from kdcli.metrics.curve import Curve
from kdcli.metrics.facts import facts_from_logits
from kdcli.metrics.score import Array, Score
from kdcli.metrics.signature import Option


@dataclass(frozen=True, eq=False)
class ChoiceTable:
    """What a model says about the choices of each row.

    Args:
        scores: log-probability of each choice as a continuation of the prompt, ``[rows, choices]``; minus
            infinity where a row has fewer choices.
        tokens: tokens of each choice, ``[rows, choices]``; 1 where a row has fewer.
        right: index of the right choice, ``[rows]``.
        labels: the choices, where all rows have the same; else empty, and columns are places in the row.
        development: the same of development rows; None without them.
    """

    scores: Array
    tokens: NDArray[np.int64]
    right: NDArray[np.int64]
    labels: tuple[str, ...] = ()
    development: "ChoiceTable | None" = None

    @cached_property
    def logp(self) -> Array:
        """Log-probabilities renormalised over the choices, ``[rows, choices]``."""
        return normalised(self.scores)

    @cached_property
    def facts(self) -> dict[str, Array]:
        """One fact per row, ``[rows]``: the same that token metrics read of a token."""
        return facts_from_logits(self.scores, self.right)

    def means(self) -> "ChoiceTable":
        """Return the table with each score divided by the choice's tokens, and so for the development rows."""
        development = self.development.means() if self.development is not None else None
        return replace(self, scores=self.scores / self.tokens, development=development)


class ChoiceMetric(Metric):
    """A metric of the probabilities of given answers, renormalised over them.

    Options of every such metric:
        bins: number of bins.
        choice_score: "sum" of the log-probabilities of a choice's tokens, or their "mean", so that longer
            choices are not less probable for their length alone.

    Class attributes:
        needs_development: whether it fits something on development rows.
    """

    eats: ClassVar[Literal["texts", "tokens", "own", "choices"]] = "choices"
    options: ClassVar[Mapping[str, Option]] = {"bins": 10, "choice_score": "sum"}
    needs_development: ClassVar[bool] = False

    def __init__(self, **options: Option) -> None:
        super().__init__(**options)
        check_bins(self.chosen["bins"], self.name)

    @classmethod
    def needs_teacher(cls) -> bool:
        """Whether it compares with a teacher: choices are the model's own affair."""
        return False

    @abstractmethod
    def measure(self, table: ChoiceTable) -> list[Score]:
        """Score a checked table; see ``scores_from_choices``."""

    def curves(self, table: ChoiceTable) -> list[Curve]:
        """Return what is worth a picture, from the table that ``measure`` takes; nothing by default."""
        return []

    def scores_from_choices(self, table: ChoiceTable) -> list[Score]:
        """Score the choices of each row.

        Args:
            table: what the model says about them.

        Returns:
            the scores named in ``scores``.

        Raises:
            InputError: no rows, shapes that do not fit, or a right answer that is no choice.
            NumericsError: a score is NaN, or a row gives every choice probability 0.
        """
        return self._proven(self.measure(self.checked(table)))

    def checked(self, table: ChoiceTable) -> ChoiceTable:
        """Return the table with this metric's option applied; errors as for the scores."""
        for part in (table, table.development):
            if part is not None:
                self._check(part)
        if self.needs_development and table.development is None:
            raise self._refuse("METRIC-06", "the development rows are missing", "give --set data.dev=FILE")
        return table.means() if self.chosen["choice_score"] == "mean" else table

    def _check(self, table: ChoiceTable) -> None:
        rows = len(table.scores)
        if rows == 0:
            raise self._refuse("METRIC-04", "nothing to score: no rows", "give rows with choices")
        if table.right.shape != (rows,) or table.tokens.shape != table.scores.shape:
            raise self._refuse("METRIC-03", "the table's shapes do not fit", "give one right choice per row")
        if table.right.min() < 0 or table.right.max() >= table.scores.shape[1]:
            raise self._refuse("METRIC-03", "a right answer is not among its choices", "number choices from 0")
        odd = np.isnan(table.scores) | (table.scores == np.inf)
        if odd.any() or (table.scores == -np.inf).all(-1).any():
            row = int((odd.any(-1) | (table.scores == -np.inf).all(-1)).argmax())
            what = f"the log-probabilities of the choices in row {row} are no numbers"
            raise NumericsError("METRIC-05", what, where=f"metric {self.name}", fix="look at the model's logits")

    def _inputs(self) -> datasets.Features:
        row = datasets.Sequence(datasets.Value("float64"))
        return datasets.Features({"predictions": row, "references": datasets.Value("int64")})

    def _compute(self, *, predictions: Sequence[Any], references: Sequence[Any], **_: Any) -> dict[str, float]:
        width = max(len(row) for row in predictions)
        scores = np.array([[*row, *[-np.inf] * (width - len(row))] for row in predictions], dtype=np.float64)
        right = np.array(references, dtype=np.int64)
        table = ChoiceTable(scores, np.ones(scores.shape, dtype=np.int64), right)
        if self.needs_development:
            table = replace(table, development=table)
        return {score.name: score.value for score in self.scores_from_choices(table)}


def normalised(scores: Array) -> Array:
    """Return log-probabilities that add up to 1 over the last axis, from unnormalised ones ``[rows, choices]``.

    >>> np.exp(normalised(np.log([[0.1, 0.3]]))).round(3).tolist()
    [[0.25, 0.75]]
    """
    shifted = scores - scores.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
