"""Shows events: a progress bar in a terminal, sparse plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, TypeAlias

from rich import box
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from kdcli.events import Event
from kdcli.text import one_line

# Draws the grid of a comparison's cells.


STYLES = {"running": "bold", "failed": "red", "done": "green", "stopped": "yellow", "waiting": "dim"}


@dataclass(frozen=True)
class CellStatus:
    """One line of the grid.

    Args:
        cell: what the cell is called.
        state: waiting, running, stopped, failed or done.
        step: optimizer steps done.
        total: of so many.
        seconds_left: to go at its last pace; None if unknown.
        log: where the story of a failure is; empty otherwise.
    """

    cell: str
    state: str
    step: int
    total: int
    seconds_left: float | None
    log: str = ""


def counts(cells: Sequence[CellStatus]) -> dict[str, int]:
    """Return how many cells are in each state, in the order of STYLES."""
    states = [cell.state for cell in cells]
    return {state: states.count(state) for state in STYLES if state in states}


def shown(cells: Sequence[CellStatus], lines: int) -> list[CellStatus]:
    """Return the cells that fit: those that run, then those that failed, then those that wait, then finished ones.

    Args:
        cells: all of them; their order is kept.
        lines: room on the screen.
    """
    rank = {"running": 0, "failed": 1, "stopped": 1, "waiting": 2, "done": 3}
    best = sorted(range(len(cells)), key=lambda index: (rank.get(cells[index].state, 2), index))[: max(lines, 1)]
    return [cells[index] for index in sorted(best)]


def grid(cells: Sequence[CellStatus]) -> Table:
    """Return the table of cells."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    table.add_column("run", overflow="fold")
    for heading in ("state", "step", "left"):
        table.add_column(heading, justify="left" if heading == "state" else "right", no_wrap=heading != "state")
    for cell in cells:
        state = f"failed (see {one_line(cell.log, 200)})" if cell.state == "failed" and cell.log else cell.state
        step = f"{cell.step:,}/{cell.total:,}" if cell.total else ""
        left = clock(cell.seconds_left) if cell.seconds_left and cell.state == "running" else ""
        style = STYLES.get(cell.state, "")
        table.add_row(Text(one_line(cell.cell, 80)), Text(state, style=style, overflow="fold"), Text(step), Text(left))
    return table


def summary(states: dict[str, int], left: float | None) -> str:
    """Return the line under the grid.

    >>> summary({"running": 1, "done": 3}, 75.0)
    '1 running, 3 done; 1:15 of training to go'
    """
    words = ", ".join(f"{count} {state}" for state, count in states.items())
    return f"{words}; {clock(left)} of training to go" if left and left >= 1 else words


def clock(seconds: int | float) -> str:
    """Return a length of time as hours, minutes, seconds.

    >>> clock(75.2), clock(3700)
    ('1:15', '1:01:40')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


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
    """Writes a line for every stage, of a study for every run, and about one every 30 seconds while it lasts.

    Args:
        stream: where the lines go.
        quiet: write warnings only.
    """

    def __init__(self, stream: Stream, *, quiet: bool = False) -> None:
        self._stream = stream
        self._quiet = quiet
        self._stage = ""
        self._started = self._last = time.monotonic()
        self._cells = Cells()
        self._said: set[str] = set()

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
            if not self._cells.seen:  # in a study a run's own line says enough; what lasts has a line every 30 seconds
                self._write(event.message)
        elif event.kind == "cell":
            self._cell(event, now)
        elif event.kind == "progress":
            if now - self._last >= SECONDS_BETWEEN_LINES:
                self._last = now
                self._write(progress_line(event, self._stage, now - self._started))
        elif event.kind != "result" and event.message not in self._said:
            self._said |= {event.message} if event.kind == "note" else set()
            self._write(words(event))

    def _cell(self, event: Event, now: float) -> None:
        if self._cells.note(event) and event.values["state"] in ("running", "done", "stopped"):
            self._last = now
            self._write(f"{event.message}: {event.values['state']} ({self._cells.summary()})")
        elif now - self._last >= SECONDS_BETWEEN_LINES:
            self._last = now
            self._write(f"{event.message}: {event.done}/{event.total} ({self._cells.summary()})")

    def _write(self, text: str) -> None:
        self._stream.write(one_line(text, 1000) + "\n")
        self._stream.flush()


class Cells:
    """Progress of every cell of a comparison, as the events report it."""

    def __init__(self) -> None:
        self.seen: dict[str, CellStatus] = {}
        self._first: dict[str, tuple[float, int]] = {}
        self._paces: dict[str, float] = {}

    def note(self, event: Event) -> bool:
        """Update a cell's status; return whether its state changed."""
        before = self.seen.get(event.message)
        state, kept = event.values["state"], before or CellStatus(event.message, "", 0, 0, None)
        step = event.done or (kept.step if state in ("running", "stopped") else 0)
        total = event.total or kept.total
        left = event.values.get("left")
        if state == "running" and step:
            left = self._left(event.message, step, total) if left is None else left
        self.seen[event.message] = CellStatus(
            cell=event.message, state=state, step=step, total=total, seconds_left=left, log=event.values.get("log", "")
        )
        if left and total > step:
            self._paces[event.message] = left / (total - step)
        return before is None or before.state != state

    def _left(self, cell: str, step: int, total: int) -> float | None:
        """Return the time to go of a cell that trains in this process, at its pace since its first step seen here."""
        now = time.monotonic()
        begun, first = self._first.setdefault(cell, (now, step))
        return (now - begun) / (step - first) * (total - step) if step > first else None

    @property
    def seconds_left(self) -> float | None:
        """Training time to go, cells one after another, at the paces seen so far; None before there is one."""
        if not self._paces:
            return None
        usual = sum(self._paces.values()) / len(self._paces)
        open_cells = [one for one in self.seen.values() if one.state in ("running", "waiting")]
        return sum(max(one.total - one.step, 0) * self._paces.get(one.cell, usual) for one in open_cells)

    @property
    def share(self) -> float:
        """Share of all optimizer steps that are done."""
        steps = sum(one.total if one.state == "done" else one.step for one in self.seen.values())
        return steps / max(1, sum(max(one.total, one.step) for one in self.seen.values()))

    def summary(self) -> str:
        """Return how many cells are in each state, and the time to go."""
        return summary(counts(tuple(self.seen.values())), self.seconds_left)


class _Words(TextColumn):
    """Text that is cut at the end where there is no room for it."""

    def render(self, task: Task) -> Text:
        """Return the text of a task, on one line."""
        text = super().render(task)
        text.no_wrap, text.overflow = True, "ellipsis"
        return text


class _Count(MofNCompleteColumn):
    """How many are done of how many; nothing while neither is known."""

    def render(self, task: Task) -> Text:
        """Return the count of a task."""
        return super().render(task) if task.total else Text(f"{task.completed:,.0f}" if task.completed else "")


class _Left(TimeRemainingColumn):
    """The time to go; nothing while it is not known."""

    def render(self, task: Task) -> Text:
        """Return the time to go of a task."""
        return super().render(task) if task.total and task.time_remaining is not None else Text("")


class _GridBar(Bar):
    """A bar; in a comparison the grid of cells and one bar for the whole of it."""

    def __init__(self, *columns: Any, cells: Cells, **options: Any) -> None:
        self._cells = cells
        super().__init__(*columns, **options)

    def get_renderables(self) -> Iterator[RenderableType]:
        """Yield the bars; once there are cells, the grid, the bar of the study and the stage at hand."""
        if not self._cells.seen:
            yield from super().get_renderables()
            return
        yield grid(shown(tuple(self._cells.seen.values()), max(self.console.height - 6, 4)))
        left = self._cells.seconds_left
        whole = Table.grid(Column(no_wrap=True), Column(no_wrap=True), Column(), padding=(0, 1))
        whole.add_row(
            ProgressBar(total=1.0, completed=self._cells.share, width=20),
            Text(f"{clock(left)} left" if left else ""),
            Text(summary(counts(tuple(self._cells.seen.values())), None), no_wrap=True, overflow="ellipsis"),
        )
        yield whole
        for task in self.tasks:
            many = f" {task.completed:,.0f}/{task.total:,.0f}" if task.total else ""
            yield Text(f"{task.description}{many}", style="dim", no_wrap=True, overflow="ellipsis")


class BarProgress:
    """Draws one bar for the current stage, or for a comparison its cells and one bar; notes are printed above.

    Args:
        console: the terminal.
    """

    def __init__(self, console: Console) -> None:
        kept = Column(no_wrap=True)
        columns = (
            _Words("{task.description}", markup=False, table_column=Column()),
            BarColumn(bar_width=20, table_column=kept),
            _Count(table_column=kept),
            _Left(compact=True, table_column=kept),
            _Words("{task.fields[values]}", markup=False, style="dim", table_column=Column()),
        )
        self._cells = Cells()
        self._bar = _GridBar(
            *columns, cells=self._cells, console=console, transient=True, redirect_stdout=False, redirect_stderr=False
        )
        self._task: TaskID | None = None

    def __enter__(self) -> "BarProgress":
        loading = "loading PyTorch ..." if "torch" not in sys.modules else "starting ..."
        self._task = self._bar.add_task(loading, total=None, values="")
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
        elif event.kind == "cell":
            self._cells.note(event)
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


SHOWN = {"loss": "loss", "tokens_per_second": "tokens/s", "generated_per_second": "generated/s", "lr": "lr"}
"""Of a training step's numbers, those worth a line, the first to be cut last; the others are in metrics.jsonl."""


def number_words(values: Mapping[str, Any]) -> str:
    """Return named numbers as words, four digits each; of a training step only loss, learning rate and speed.

    >>> number_words({"rows": 1200, "who": "akl"}), number_words({"loss": 1.23456, "gradient_norm": 2.0})
    ('rows 1,200, who akl', 'loss 1.235')
    """
    names = SHOWN if "loss" in values else {name: name for name in values}
    return ", ".join(f"{name} {_number(values[key])}" for key, name in names.items() if key in values)


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
