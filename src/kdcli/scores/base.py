"""The interface of scores: one number of one row, and what it is measured with."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kdcli.data.tokenize import Example, first_context, prompt_prefix
from kdcli.losses.base import widen
from kdcli.models.internals import eval_mode
from kdcli.models.load import LanguageModel
from kdcli.registry.options import Plugin

Side: TypeAlias = Literal["student", "teacher"]
SIDES: tuple[Side, ...] = ("student", "teacher")

_BLOCK_BYTES = 64 * 2**20
"""Logits that exist at once."""


@dataclass(frozen=True)
class ScoreNeeds:
    """What a score is measured with.

    Args:
        student: the student's logits are read.
        teacher: the teacher's logits are read.
        held_out: held-out rows are read.
    """

    student: bool = False
    teacher: bool = False
    held_out: bool = False

    def __or__(self, other: "ScoreNeeds") -> "ScoreNeeds":
        return ScoreNeeds(self.student or other.student, self.teacher or other.teacher, self.held_out or other.held_out)

    def reads(self, side: Side) -> bool:
        """Whether a model's logits are read."""
        return self.student if side == "student" else self.teacher


def needs_of(side: Side) -> ScoreNeeds:
    """Return the need for one model.

    >>> needs_of("teacher").teacher
    True
    """
    return ScoreNeeds(student=side == "student", teacher=side == "teacher")


@dataclass
class Reading:
    """What a model's trunk makes of the response of a row, read alone and without gradient.

    Args:
        model: who reads.
        hidden: what its head reads at each response token, ``[t, d]``.
        labels: the response tokens, end token included, ``[t]``.
    """

    model: LanguageModel
    hidden: Float[Tensor, "t d"]
    labels: Int[Tensor, " t"]

    def blocks(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield hidden states, logits in fp32 or wider, ``[n, v]``, and labels, of a bounded number of tokens each."""
        rows = max(1, _BLOCK_BYTES // (4 * self.model.vocab))
        for start in range(0, len(self.labels), rows):
            hidden = self.hidden[start : start + rows]
            yield hidden, widen(self.model.logits(hidden)), self.labels[start : start + rows]

    def each(self, value: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Return a number of each response token, ``[t]`` in float64.

        Args:
            value: from logits ``[n, v]`` and labels ``[n]`` to ``[n]``.
        """
        with torch.no_grad():
            found = [value(logits, labels).double() for _, logits, labels in self.blocks()]
        return torch.cat(found) if found else torch.zeros(0, dtype=torch.float64)

    @cached_property
    def log_probs(self) -> Tensor:
        """The log-probability of each response token, ``[t]`` in float64."""
        return self.each(label_log_probs)


def label_log_probs(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the log-probability of each label, ``[n]``.

    >>> label_log_probs(torch.zeros(1, 4), torch.tensor([2])).exp().item()
    0.25
    """
    return torch.log_softmax(logits, -1).gather(1, labels[:, None]).squeeze(1)


@dataclass(frozen=True)
class ScoreContext:
    """What scores are measured with.

    Args:
        models: those that some score needs, by side.
        held_out: held-out rows; empty where no score needs them.
        autocast: dtype of the forward pass; None for that of the weights.
    """

    models: Mapping[Side, LanguageModel] = field(default_factory=dict)
    held_out: Sequence[Example] = ()
    autocast: torch.dtype | None = None
    _shared: dict[Any, Any] = field(default_factory=dict)

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return what is made once for all rows, such as what the held-out rows say.

        Args:
            key: what it is; a score's own options belong to it.
            make: how it is made.
        """
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]

    @torch.no_grad()
    def read(self, example: Example, side: Side) -> Reading:
        """Let a model read a row by itself, so that no number depends on other rows; its mode is put back."""
        model = self.models[side]
        device = model.head.weight.device
        ids = torch.tensor([example.ids], device=device)
        with eval_mode(model.model), torch.autocast(device.type, self.autocast, enabled=self.autocast is not None):
            hidden = model.hidden(ids[:, :-1], torch.ones_like(ids[:, :-1]))[0]
        first = example.prompt_length
        return Reading(model, hidden[first - 1 :], ids[0, first:])


class ScoredRow:
    """One row as a score sees it.

    Args:
        example: its tokens.
        context: what it is measured with.
    """

    def __init__(self, example: Example, context: ScoreContext) -> None:
        self.example, self.context = example, context
        self._readings: dict[Side, Reading] = {}

    def reading(self, side: Side) -> Reading:
        """Return what a model makes of the response behind its prompt; read once for all scores."""
        if side not in self._readings:
            self._readings[side] = self.context.read(self.example, side)
        return self._readings[side]

    def without_prompt(self, side: Side) -> "ScoredRow":
        """Return the response as a text by itself, behind what the model's tokenizer puts before a text."""
        model = self.context.models[side]
        start = prompt_prefix(model.tokenizer) or (first_context(model.tokenizer, model.ends),)
        ids = (*start, *self.example.ids[self.example.prompt_length :])
        return ScoredRow(replace(self.example, ids=ids, prompt_length=len(start)), self.context)

    @property
    def targets(self) -> int:
        """Response tokens, end token included."""
        return len(self.example.ids) - self.example.prompt_length


class Score(Plugin, ABC):
    """A number of a training row; its fields are its options.

    Subclasses are final and hold no state. A score sees one row at a time, so that a row's number is the same in any
    file, and is found again after an interruption.

    Class attributes:
        name: the registered name.
        summary: one sentence.
        formula: one line of mathematics, p the teacher, q the student, y the response, x the prompt.
        reference: paper and section.
    """

    part: ClassVar[str] = "score"
    summary: ClassVar[str]
    formula: ClassVar[str]
    reference: ClassVar[str]

    def needs(self) -> ScoreNeeds:
        """Declare what this score is measured with; nothing by default."""
        return ScoreNeeds()

    @abstractmethod
    def value(self, row: ScoredRow) -> float:
        """Return the number of a row."""
