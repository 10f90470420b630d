"""Events of a run: progress, notes, warnings."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Kind = Literal["note", "warning", "stage", "progress", "saved", "cell", "result"]


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    Args:
        kind: note and warning carry a sentence; stage opens a piece of work of ``total`` units;
            progress reports ``done`` of them; saved names a checkpoint; cell says how far one run of
            a comparison is; result closes a run.
        message: what to show a person.
        done: units finished.
        total: units of the stage.
        values: numbers to show and to log.
    """

    kind: Kind
    message: str = ""
    done: int = 0
    total: int = 0
    values: dict[str, Any] = field(default_factory=dict)


Report: TypeAlias = Callable[[Event], None]


def silent(event: Event) -> None:
    """Discard events."""
