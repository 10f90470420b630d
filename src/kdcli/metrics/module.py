"""What every metric is: an ``evaluate`` module that needs no hub, with a signature and checked input."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import datasets
import evaluate
import numpy as np

from kdcli.bounded import Bounds
from kdcli.errors import InputError, NumericsError
from kdcli.metrics.score import Better, Score
from kdcli.metrics.signature import Option, signature
from kdcli.registry import METRICS


class Metric(evaluate.Metric, ABC):
    """Base of every metric; derive from TextMetric or TokenMetric.

    Class attributes, written as literals so that they can be read without importing:
        name: the registered name.
        description: one line for lists.
        scores: the names of its scores and which direction is better.
        bounds: lowest and highest value of each of them; a score that is not named may be anything.
        settings: the choices that change the number, as ``key:value`` joined by ``|``.
        options: keyword arguments of the constructor and their defaults.
        libraries: packages whose version changes the number.
        eats: what it is computed from, set by the kind of metric.

    Args:
        options: values for the names in ``options``.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    scores: ClassVar[Mapping[str, Better]]
    bounds: ClassVar[Mapping[str, Bounds]] = {}
    settings: ClassVar[str] = ""
    options: ClassVar[Mapping[str, Option]] = {}
    libraries: ClassVar[tuple[str, ...]] = ()
    eats: ClassVar[Literal["texts", "tokens", "own", "choices"]]

    def __init__(self, **options: Option) -> None:
        unknown = sorted(set(options) - set(self.options))
        if unknown:
            known = f"it takes {', '.join(self.options)}" if self.options else "it takes none"
            raise InputError("METRIC-02", f'no option "{unknown[0]}"', where=f"metric {self.name}", fix=known)
        self.chosen: dict[str, Any] = {**self.options, **options}
        super().__init__(keep_in_memory=True)
        self._unchecked_add_batch: Callable[..., None] = self.add_batch
        self.add_batch = self._add_checked_batch

    @property
    def signature(self) -> str:
        """Everything that changes the number, as ``rougeL|lib:rouge-score-0.1.2|stem:yes``."""
        return signature(self.name, self.settings, self.chosen, self.libraries)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.description, citation="", features=self._inputs(), inputs_description=self.__doc__ or ""
        )

    @abstractmethod
    def _inputs(self) -> datasets.Features | list[datasets.Features]:
        """Say what ``compute`` accepts as predictions and references."""

    def _build_data_dir(self) -> str:
        """Keep everything in memory: no cache folder is made."""
        return ""

    def _add_checked_batch(self, *, predictions: Any = None, references: Any = None, **others: Any) -> None:
        """Refuse what evaluate would cut or cast silently."""
        if predictions is None or references is None:
            missing = "predictions" if predictions is None else "references"
            raise self._refuse("METRIC-03", f"{missing} are missing", "give predictions and references")
        if len(predictions) != len(references):
            what = f"{len(predictions)} predictions but {len(references)} references"
            raise self._refuse("METRIC-03", what, "give one entry of references per prediction")
        if len(predictions) == 0:
            raise self._refuse("METRIC-04", "nothing to score", "give at least one prediction")
        try:
            self._unchecked_add_batch(predictions=predictions, references=references, **others)
        except ValueError as error:
            self.writer = None
            raise self._refuse("METRIC-03", str(error).splitlines()[0], "see kd metrics show") from error

    def _finalize(self) -> None:
        if self.writer is None:
            raise self._refuse("METRIC-04", "nothing to score", "give predictions and references")
        super()._finalize()

    def bounded(self, score: Score) -> Score:
        """Return a score of this metric with the bounds that the metric gives it, else with its own."""
        return replace(score, bounds=self.bounds.get(score.name, score.bounds))

    def _refuse(self, code: str, what: str, fix: str) -> InputError:
        return InputError(code, what, where=f"metric {self.name}", fix=fix)

    def _proven(self, scores: Any) -> list[Score]:
        """Stop at a value that is not a number; infinity is an honest answer, NaN is none. Bounds are filled in.

        An optional score that counts no example is left out.
        """
        if not (isinstance(scores, list | tuple) and all(isinstance(score, Score) for score in scores)):
            what = f"must return a list of {Score.__module__}.{Score.__name__}, got {type(scores).__name__}"
            raise InputError("PLUG-10", what, where=f"metric {METRICS.name_of(type(self))}", fix="mend the plug-in")
        scores = [self.bounded(score) for score in scores if not (score.optional and np.isnan(score.value))]
        for score in scores:
            if np.isnan(score.value):
                what = f"{score.name} is not a number"
                raise NumericsError("METRIC-05", what, where=f"metric {self.name}", fix="look at the model's logits")
        return scores
