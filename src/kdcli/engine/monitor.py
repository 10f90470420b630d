"""What looks at a student while it is trained, as the loop sees it."""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Monitor(Protocol):
    """Measures the student between steps; it must leave weights, modes and random generators as they are.

    It keeps no state of its own: what it knows follows from the lines of ``metrics.jsonl``, which a resumed
    run cuts back to its checkpoint.
    """

    @property
    def ends(self) -> bool:
        """Whether training is to end now."""
        ...

    def recall(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Take in the lines of the steps done so far."""
        ...

    def due(self, step: int) -> bool:
        """Whether the student is to be measured after a step."""
        ...

    def look(self, step: int) -> dict[str, Any] | None:
        """Return what to log about a step under ``evaluation``, None where it is not due."""
        ...
