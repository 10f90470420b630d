"""What the teacher's text asks of whoever writes it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from transformers import PreTrainedTokenizerBase

from kdcli.data.examples import Example
from kdcli.end_tokens import EndTokens
from kdcli.sources.sentences import Sentence

if TYPE_CHECKING:
    from kdcli.sources.base import Ground
    from kdcli.sources.teacher import TeacherSource

Wanted = Mapping[int, Sequence[int]]
"""Row -> which of the answers to its prompt are wanted."""


@runtime_checkable
class Author(Protocol):
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
        self, source: "TeacherSource", ground: "Ground", prompts: Mapping[int, Example], wanted: Wanted
    ) -> Iterator[Sentence]:
        """Yield the answers wanted, as they end.

        Args:
            source: how they are chosen and how long they may be.
            ground: real ids, longest sequence, and who is told of tokens.
            prompts: row -> an example, of which only the prompt is read.
            wanted: which answers.

        Raises:
            KDError: what the author refuses.
        """
        ...
