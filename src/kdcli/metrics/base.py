"""The interfaces of metrics of texts and of token facts, as ``evaluate`` modules that need no hub.

Importing this module imports ``evaluate``, which takes seconds; ``describe.py`` reads the same
class attributes without that.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, ClassVar, Literal

import datasets
import evaluate
import numpy as np
from numpy.typing import NDArray

from kdcli.bounded import Bounds
from kdcli.errors import InputError, NumericsError
from kdcli.metrics.curve import Curve
from kdcli.metrics.score import Array, Better, Score, facts_from_logits
from kdcli.metrics.signature import DEVELOPMENT_FACTS, TEACHER_FACTS, Option, signature
from kdcli.registry.registry import METRICS

__all__ = ["FactMetric", "Metric", "TextMetric", "TokenMetric"]


# What every metric is: an ``evaluate`` module that needs no hub, with a signature and checked input.


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
        input_kind: what it is computed from, set by the kind of metric.
        extra_inputs: what else, as :class:`TextMetric` says.

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
    input_kind: ClassVar[Literal["texts", "tokens", "own", "choices"]]
    extra_inputs: tuple[str, ...] = ()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for earlier, name in (("eats", "input_kind"), ("also_reads", "extra_inputs")):
            if earlier in vars(cls):  # a plug-in that was written for an earlier version
                setattr(cls, name, vars(cls)[earlier])
                delattr(cls, earlier)

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
    def eats(self) -> str:
        """The earlier name of ``input_kind``, for plug-ins."""
        return self.input_kind

    @property
    def also_reads(self) -> tuple[str, ...]:
        """The earlier name of ``extra_inputs``, for plug-ins."""
        return self.extra_inputs

    @also_reads.setter
    def also_reads(self, names: tuple[str, ...]) -> None:
        self.extra_inputs = names

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
        """Stop at a value that is not a number; infinity is allowed, NaN is not. Bounds are filled in.

        An optional score that counts no example is left out.
        """
        if not (isinstance(scores, list | tuple) and all(isinstance(score, Score) for score in scores)):
            what = f"must return a list of {Score.__module__}.{Score.__name__}, got {type(scores).__name__}"
            raise InputError("PLUG-10", what, where=f"metric {METRICS.name_of(type(self))}", fix="correct the plug-in")
        scores = [self.bounded(score) for score in scores if not (score.optional and np.isnan(score.value))]
        for score in scores:
            if np.isnan(score.value):
                what = f"{score.name} is not a number"
                raise NumericsError("METRIC-05", what, where=f"metric {self.name}", fix="look at the model's logits")
        return scores


ALSO = {
    "ended": 'write "ended": true or false on every line, or measure a model',
    "reference_tokens": "measure a model, or give --set evaluation.length_unit=words",
}
"""What metrics of texts may read besides the texts, and what helps where it is not known."""


class TextMetric(Metric):
    """A metric of generated texts against references.

    Attributes:
        needs_references: whether every example must have one.
        extra_inputs: its inputs besides the texts: "ended" (whether the model itself ended each answer,
            ``[example][sampling seed]``), "reference_tokens" (tokens of each example's first reference).
        splits_at_spaces: whether its words are what stands between spaces, which some scripts do not write.
    """

    input_kind: ClassVar[Literal["texts", "tokens", "own", "choices"]] = "texts"
    needs_references: ClassVar[bool] = True
    splits_at_spaces: bool = False

    @abstractmethod
    def measure(self, predictions: list[list[str]], references: list[list[str]], **also: Any) -> list[Score]:
        """Score checked texts and what ``extra_inputs`` names; see ``scores_from_texts``."""

    def curves(self, predictions: list[list[str]], references: list[list[str]], **also: Any) -> list[Curve]:
        """Return curves to plot, from what ``scores_from_texts`` takes; none by default."""
        return []

    def scores_from_texts(self, predictions: list[list[str]], references: list[list[str]], **also: Any) -> list[Score]:
        """Score several answers to each example.

        Args:
            predictions: answers, ``[example][sampling seed]``, equally many for each example.
            references: valid answers, ``[example][any number]``.
            also: what is known besides, by the names of ``extra_inputs``; the others are not looked at.

        Returns:
            the scores named in ``scores``.

        Raises:
            InputError: nothing to score, or counts that do not fit.
        """
        if len(predictions) != len(references):
            what = f"predictions for {len(predictions)} examples, references for {len(references)}"
            raise self._refuse("METRIC-03", what, "give references for every prediction")
        if not predictions:
            raise self._refuse("METRIC-04", "nothing to score", "give at least one example")
        counts = sorted({len(answers) for answers in predictions})
        if len(counts) > 1 or counts[0] == 0:
            what = f"examples have {' or '.join(map(str, counts))} predictions"
            raise self._refuse("METRIC-03", what, "give equally many, at least one, for every example")
        bare = next((index for index, valid in enumerate(references) if not valid), None)
        if self.needs_references and bare is not None:
            raise self._refuse("METRIC-03", f"example {bare} has no reference", "give at least one per example")
        return self._proven(self.measure(predictions, references, **self._read(also, len(predictions))))

    def _read(self, also: Mapping[str, Any], examples: int) -> dict[str, Any]:
        for name in self.extra_inputs:
            if also.get(name) is None:
                fix = ALSO.get(name, f"leave {self.name} out")
                raise self._refuse("METRIC-06", f'"{name}" is not known of these answers', fix)
            if len(also[name]) != examples:
                what = f'"{name}" of {len(also[name])} examples, predictions for {examples}'
                raise self._refuse("METRIC-03", what, f'give "{name}" for every example')
        return {name: also[name] for name in self.extra_inputs}

    def _inputs(self) -> list[datasets.Features]:
        one, several = datasets.Value("string"), datasets.Sequence(datasets.Value("string"))
        return [
            datasets.Features({"predictions": predictions, "references": references})
            for predictions, references in product((one, several), (one, several))
        ]

    def _compute(self, *, predictions: Sequence[Any], references: Sequence[Any], **also: Any) -> dict[str, float]:
        answers, valid = [_listed(text) for text in predictions], [_listed(text) for text in references]
        return {score.name: score.value for score in self.scores_from_texts(answers, valid, **also)}


class FactMetric(Metric):
    """A metric of statistics of each token, whichever model generated the tokens.

    Class attributes:
        facts: names of the token facts it reads.
    """

    facts: ClassVar[tuple[str, ...]]

    @classmethod
    def needs_teacher(cls) -> bool:
        """Whether a statistic it reads needs a teacher."""
        return not TEACHER_FACTS.isdisjoint(cls.facts)

    @property
    def needs_development(self) -> bool:
        """Whether a fact it reads is fitted on development rows."""
        return not DEVELOPMENT_FACTS.isdisjoint(self.facts)

    def _fact(self, facts: Mapping[str, Array], name: str, count: int) -> Array:
        if name not in facts:
            fix = "give --teacher" if name in TEACHER_FACTS else "give the labels' facts"
            raise self._refuse("METRIC-06", f'the token fact "{name}" is missing', fix)
        values = np.asarray(facts[name], dtype=np.float64)
        if values.shape != (count,):
            what = f'"{name}" has shape {list(values.shape)}, expected [{count}]'
            raise self._refuse("METRIC-03", what, "give one value per token")
        if np.isnan(values).any():
            what = f'"{name}" of token {int(np.isnan(values).argmax())} is not a number'
            raise NumericsError("METRIC-05", what, where=f"metric {self.name}", fix="look at the model's logits")
        return values

    def _inputs(self) -> datasets.Features:
        row = datasets.Sequence(datasets.Value("float64"))
        references = row if self.needs_teacher() else datasets.Value("int64")
        return datasets.Features({"predictions": row, "references": references})


class TokenMetric(FactMetric):
    """A metric of statistics of each token of the reference responses."""

    input_kind: ClassVar[Literal["texts", "tokens", "own", "choices"]] = "tokens"

    @abstractmethod
    def measure(self, facts: Mapping[str, Array], example: NDArray[np.int64], examples: int) -> list[Score]:
        """Score checked facts; see ``scores_from_tokens``."""

    def curves(self, facts: Mapping[str, Array], example: NDArray[np.int64], examples: int) -> list[Curve]:
        """Return curves to plot, from the facts that ``measure`` takes; none by default."""
        return []

    def scores_from_tokens(self, facts: Mapping[str, Array], example: NDArray[Any], examples: int) -> list[Score]:
        """Score per-token facts.

        Args:
            facts: fact name -> values of shape ``[n]``.
            example: the example each token belongs to, shape ``[n]``.
            examples: how many examples there are.

        Returns:
            the scores named in ``scores``.

        Raises:
            InputError: no tokens, a fact missing, or lengths that do not fit.
            NumericsError: a fact is NaN.
        """
        index = np.asarray(example, dtype=np.int64)
        if len(index) == 0:
            raise self._refuse("METRIC-04", "nothing to score: no response tokens", "give rows with responses")
        if index.min() < 0 or index.max() >= examples:
            what = f"tokens of examples {index.min()} to {index.max()}, but there are {examples} examples"
            raise self._refuse("METRIC-03", what, "number examples from 0")
        wide = {name: self._fact(facts, name, len(index)) for name in self.facts}
        return self._proven(self.measure(wide, index, examples))

    def _compute(self, *, predictions: Sequence[Any], references: Sequence[Any], **_: Any) -> dict[str, float]:
        sides = {"teacher": references} if self.needs_teacher() else {"labels": references}
        facts = facts_from_logits(predictions, **sides)
        count = len(predictions)
        return {score.name: score.value for score in self.scores_from_tokens(facts, np.arange(count), count)}


def _listed(texts: str | Sequence[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else list(texts)
