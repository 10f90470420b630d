"""Shows events while work goes on: a bar on a terminal, sparse plain lines elsewhere."""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol, TypeAlias

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from kdcli.engine.events import Event
from kdcli.text import one_line

Stream: TypeAlias = Any
"""A text stream; ``typing.TextIO`` would leave out StringIO."""

SECONDS_BETWEEN_LINES = 30.0


class Progress(Protocol):
    """Something that shows events; used as a context around the work."""

    def __call__(self, event: Event) -> None:
        """Show one event."""
        ...

    def __enter__(self) -> "Progress": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class LineProgress:
    """Writes a line for every stage, and about one every 30 seconds while it lasts.

    Args:
        stream: where the lines go.
        quiet: write warnings only.
    """

    def __init__(self, stream: Stream, *, quiet: bool = False) -> None:
        self._stream = stream
        self._quiet = quiet
        self._stage = ""
        self._started = self._last = time.monotonic()

    def __enter__(self) -> "LineProgress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.flush()

    def __call__(self, event: Event) -> None:
        """Write the event's line if one is due."""
        now = time.monotonic()
        if event.kind == "warning":
            self._write(words(event))
        elif self._quiet:
            return
        elif event.kind == "stage":
            self._stage, self._started, self._last = event.message, now, now
            self._write(event.message)
        elif event.kind == "progress":
            if now - self._last >= SECONDS_BETWEEN_LINES:
                self._last = now
                self._write(progress_line(event, self._stage, now - self._started))
        elif event.kind != "result":
            self._write(words(event))

    def _write(self, text: str) -> None:
        self._stream.write(one_line(text, 1000) + "\n")
        self._stream.flush()


class BarProgress:
    """Draws one bar for the stage at hand; notes scroll by above it.

    Args:
        console: the terminal.
    """

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[values]}", markup=False, style="dim"),
            TimeRemainingColumn(compact=True),
        )
        self._bar = Bar(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False)
        self._task: TaskID | None = None

    def __enter__(self) -> "BarProgress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, event: Event) -> None:
        """Redraw for the event."""
        if event.kind == "stage":
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(one_line(event.message, 40), total=event.total or None, values="")
        elif event.kind == "progress" and self._task is not None:
            self._bar.update(
                self._task,
                completed=event.done,
                total=event.total or None,
                values=one_line(number_words(event.values), 60),
            )
        elif event.kind != "result" and event.kind != "progress":
            self._bar.console.print(Text(one_line(words(event), 1000)), soft_wrap=True)


def words(event: Event) -> str:
    """Return the sentence of an event that is no progress.

    >>> words(Event("saved", "checkpoint-00000040"))
    'saved checkpoint-00000040'
    """
    prefix = {"warning": "warning: ", "saved": "saved "}.get(event.kind, "")
    return prefix + event.message


def progress_line(event: Event, stage: str, seconds: int | float) -> str:
    """Return the plain line of a progress event.

    Args:
        event: of kind progress.
        stage: what the work is called.
        seconds: since the stage began.

    >>> progress_line(Event("progress", done=20, total=80, values={"loss": 1.23456}), "akl", 10.0)
    'akl: 20/80, loss 1.235, 0:30 left'
    """
    parts = [f"{event.done}/{event.total}" if event.total else str(event.done)]
    parts += [number_words(event.values)] if event.values else []
    if event.done and event.total:
        parts.append(f"{clock(seconds / event.done * (event.total - event.done))} left")
    return f"{stage}: " + ", ".join(parts)


SHOWN = {"loss": "loss", "lr": "lr", "tokens_per_second": "tokens/s"}
"""Of a training step's numbers, those worth a line; the others are in metrics.jsonl."""


def number_words(values: Mapping[str, Any]) -> str:
    """Return named numbers as words, four digits each; of a training step only the telling ones.

    >>> number_words({"rows": 1200, "who": "akl"}), number_words({"loss": 1.23456, "gradient_norm": 2.0})
    ('rows 1,200, who akl', 'loss 1.235')
    """
    names = SHOWN if "loss" in values else {name: name for name in values}
    return ", ".join(f"{name} {_number(values[key])}" for key, name in names.items() if key in values)


def clock(seconds: int | float) -> str:
    """Return a length of time as hours, minutes, seconds.

    >>> clock(75.2), clock(3700)
    ('1:15', '1:01:40')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
