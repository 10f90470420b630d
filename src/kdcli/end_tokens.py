"""The tokens that end a text: a model has one or several, and a text says which of them was written."""

from collections.abc import Sequence
from dataclasses import dataclass

UNTOLD = -1
"""Stands for the end token of a text that was ended, by a source that does not tell by which token."""


@dataclass(frozen=True)
class EndTokens:
    """The tokens that end a text of one model; each of them does.

    Args:
        ids: token ids; the first is put after a response that names none itself. Empty for texts that never end.

    >>> ends = EndTokens((2, 7))
    >>> 7 in ends, 3 in ends, ends.default
    (True, False, 2)
    """

    ids: tuple[int, ...] = ()

    def __contains__(self, token: object) -> bool:
        return token in self.ids

    @property
    def default(self) -> int:
        """The token put after a response that names none itself."""
        return self.ids[0]

    def place(self, response: Sequence[int]) -> int | None:
        """Return where a response ends: its first end token that follows anything else; None without one.

        An end token before anything else ends nothing, as with families whose first token is their end token; a
        response of nothing else is an empty one that was ended.

        >>> EndTokens((2, 7)).place([5, 6, 7, 2]), EndTokens((2,)).place([2, 5, 2]), EndTokens((2,)).place([2])
        (2, 2, 0)
        """
        start = self.leading(response)
        return next((at for at in range(start, len(response)) if response[at] in self.ids), None)

    def leading(self, response: Sequence[int]) -> int:
        """Count the end tokens that stand before anything else; 0 where nothing else follows.

        >>> EndTokens((2,)).leading([2, 2, 5, 2]), EndTokens((2,)).leading([2])
        (2, 0)
        """
        return next((at for at, token in enumerate(response) if token not in self.ids), 0)

    def body(self, response: Sequence[int]) -> tuple[int, ...]:
        """Return a response without the end token that closes it, if one does.

        >>> EndTokens((2, 7)).body((5, 7)), EndTokens((2,)).body((5, 7))
        ((5,), (5, 7))
        """
        return tuple(response[:-1] if response and response[-1] in self.ids else response)
