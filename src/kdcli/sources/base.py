"""The interface of sources: the micro-batches of any step, and what a source needs for them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from kdcli.config.sections import TrainConfig
from kdcli.data.batching import Batch
from kdcli.data.tokenize import Example, TokenDataset
from kdcli.end_tokens import EndTokens
from kdcli.models.load import LanguageModel
from kdcli.registry.options import Plugin, earlier_names
from kdcli.sources.completions import TeacherCompletion
from kdcli.sources.token_counts import Made, TokenCounts

# What the teacher's text asks of whoever writes it.


Wanted = Mapping[int, Sequence[int]]
"""Row -> which of the answers to its prompt are wanted."""


@runtime_checkable
class TextGenerator(Protocol):
    """Writes answers to prompts.

    Attributes:
        tokenizer: of the ids it writes.
        ends: the tokens that end a text.
        digest: what it is, as far as its texts follow from it.
        precision: in what it computes.
    """

    tokenizer: PreTrainedTokenizerBase
    ends: EndTokens
    digest: str
    precision: str

    def write(
        self, source: Any, context: "SourceContext", prompts: Mapping[int, Example], wanted: Wanted
    ) -> Iterator[TeacherCompletion]:
        """Yield the answers wanted, as they end.

        Args:
            source: how they are chosen and how long they may be.
            context: real ids, longest sequence, and the callback for generated tokens.
            prompts: row -> an example, of which only the prompt is read.
            wanted: which answers.

        Raises:
            KDError: what the generator refuses.
        """
        ...


@earlier_names(fixed="offline", words="text_only")
@dataclass(frozen=True)
class SourceNeeds:
    """What a source asks for before it can be opened, and what it gives.

    Args:
        student: the student writes sequences while it is trained.
        teacher: the teacher writes sequences, so a cache of its hidden states does not do.
        corpus: rows of a second corpus are read.
        offline: every sequence is a row of the data set, so that a teacher's cache knows it.
        monitor: lower-is-better score that it follows in evaluations while training; empty for none.
        facts: names of the per-token facts it supplies.
        origins: whose words it supplies, names of ``losses.supplied.ORIGINS``.
        text_only: of the teacher it wants text and nothing else, so that one behind a server does.
        same_tokens: student and teacher must have one tokenizer.
    """

    student: bool = False
    teacher: bool = False
    corpus: bool = False
    offline: bool = True
    monitor: str = ""
    facts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset({"data"})
    text_only: bool = False
    same_tokens: bool = False

    def __or__(self, other: "SourceNeeds") -> "SourceNeeds":
        return SourceNeeds(
            self.student or other.student,
            self.teacher or other.teacher,
            self.corpus or other.corpus,
            self.offline and other.offline,
            self.monitor or other.monitor,
            self.facts | other.facts,
            self.origins | other.origins,
            all(one.text_only for one in (self, other) if one.teacher),
            self.same_tokens or other.same_tokens,
        )


@earlier_names(author="generator")
@dataclass(frozen=True)
class SourceContext:
    """What a source reads: data set, settings, models, and what it calls.

    Args:
        dataset: training rows, at least one.
        train: epochs, max_steps, batch_size, micro_tokens, length_window and seed.
        pad_id: token to pad with.
        rank: this process' number, from 0.
        world: processes in all.
        student: the model that is trained; None where nothing is generated, as for a plan.
        teacher: the model it learns from; None where it is not asked to write.
        generator: what generates the teacher's text in its stead, such as a server; None for the teacher itself.
        vocab: real ids, shared by both unless the teacher has others.
        corpus: rows of a second corpus.
        longest: tokens that a whole sequence may have, so that every model can read it; None for any number.
        autocast: dtype in which a model writes; None leaves it as it is.
        folder: where what is made once may be kept; None keeps nothing.
        report: called with the number of tokens just generated.
        progress: called with what is made once, sequences done and in all, and tokens per second.
        teacher_rows: the training rows as a teacher of another tokenizer reads them, one for one; None where both
            share a tokenizer.
        teacher_vocab: that teacher's real ids.
        gather: joins a list of each process, in the order of ranks; every process must call it.
        feedback: sha256 of rows that the prompts show some of; None for none.
    """

    dataset: TokenDataset
    train: TrainConfig
    pad_id: int
    rank: int = 0
    world: int = 1
    student: LanguageModel | None = None
    teacher: LanguageModel | None = None
    generator: TextGenerator | None = None
    vocab: int | None = None
    corpus: TokenDataset | None = None
    longest: int | None = None
    autocast: torch.dtype | None = None
    folder: Path | None = None
    teacher_rows: TokenDataset | None = None
    teacher_vocab: int | None = None
    report: Callable[[int], None] = field(default=lambda tokens: None)
    progress: Callable[[str, int, int, float], None] = field(default=lambda what, done, total, rate: None)
    gather: Callable[[list[Any]], list[Any]] = field(default=lambda items: items)
    feedback: str | None = None

    def __post_init__(self) -> None:
        if not len(self.dataset):
            raise ValueError("expected at least one example, got an empty data set")
        if not 0 <= self.rank < self.world:
            raise ValueError(f"expected a rank in 0..{self.world - 1}, got {self.rank}")


class StepBatches(ABC):
    """Supplies training windows; a window is what one optimizer step reads.

    The window of a step follows from settings, step, the student's weights and the state alone: a run that
    resumes restores the state, asks for the next step, and gets what it would have got.
    """

    @property
    @abstractmethod
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the data."""

    @property
    @abstractmethod
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""

    @abstractmethod
    def window(self, step: int) -> list[Batch]:
        """Return this process' micro-batches of a step, counted from 0; empty if none fall to it."""

    @property
    def generated(self) -> int:
        """Tokens that this process generated for the window given last; 0 by default."""
        return 0

    @property
    def effort(self) -> TokenCounts:
        """What this process' writing for the window given last took; nothing by default."""
        return TokenCounts()

    @property
    def made(self) -> Made:
        """What was written before the first step; nothing by default."""
        return Made()

    def origins(self) -> dict[str, int]:
        """Return how many of this process' sequences of the window given last each writer wrote; empty by default."""
        return {}

    def values(self) -> dict[str, float]:
        """Return what is to be logged of the window given last, the same in every repetition; nothing by default."""
        return {}

    def observe(self, step: int, scores: Mapping[str, float | None]) -> None:
        """Take in what an evaluation after a step has found; of no effect by default."""
        return

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint must hold besides the step; nothing by default."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a checkpoint's state; by default there is none."""
        assert not state, "a checkpoint holds the state of another source"


class Source(Plugin, ABC):
    """Where training sequences come from; its fields are its options.

    Subclasses are final and hold no state: all of that is in the :class:`StepBatches` they open.

    Class attributes:
        name: the registered name.
        summary: one sentence.
        reference: paper and section.
        mixable: whether it opens ``RowWindows``, in which each row of a step becomes one sequence.
        needs_no_training: whether it is the text of a teacher, whole before the first step, as ``kd generate`` writes
            it; so is :class:`~kdcli.sources.teacher.TeacherSource`.
    """

    part: ClassVar[str] = "source"
    mixable: ClassVar[bool] = False
    needs_no_training: ClassVar[bool] = False
    summary: ClassVar[str]
    reference: ClassVar[str]

    def needs(self) -> SourceNeeds:
        """Declare what this source asks for and supplies; by default rows of the data set as they are."""
        return SourceNeeds()

    @abstractmethod
    def open(self, context: SourceContext) -> StepBatches:
        """Return the windows of a run."""
