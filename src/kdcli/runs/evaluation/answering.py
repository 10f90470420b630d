"""Where answers come from: a model in this process, or anything else that is asked the same questions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from kdcli.engine.events import Report
from kdcli.generate import Answer


@dataclass(frozen=True)
class Question:
    """A prompt, and the seeds it is still to be answered for.

    Args:
        number: of the example; every draw follows from seed and number alone.
        ids: the prompt's tokens, as the model reads them.
        text: the prompt, template and all; empty for plain text.
        seeds: sampling seeds, one answer each.
    """

    number: int
    ids: tuple[int, ...]
    text: str
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Said:
    """One answer to one question.

    Args:
        number: of the example.
        seed: the sampling seed it was drawn with.
        text: the answer, without what ends it, white space cut at both ends.
        answer: its tokens, empty where the source gives text only, and whether the source ended it itself.
    """

    number: int
    seed: int
    text: str
    answer: Answer


@runtime_checkable
class Answerer(Protocol):
    """A source of answers."""

    @property
    def identity(self) -> str:
        """What answers are kept under: another identity is another source."""
        ...

    def answers_for(self, questions: Sequence[Question], report: Report) -> Iterator[Said]:
        """Yield one answer per question and seed, in whatever order they are finished.

        Args:
            questions: what is to be answered.
            report: told how many answers are made, and at how many tokens per second.
        """
        ...
