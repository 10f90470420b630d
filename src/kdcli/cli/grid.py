"""Draws the grid of a comparison's cells."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

from kdcli.text import one_line

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
    """Return the cells that fit: those that run or failed before those that wait, those before finished ones.

    Args:
        cells: all of them; their order is kept.
        lines: room on the screen.
    """
    rank = {"running": 0, "failed": 0, "stopped": 0, "waiting": 1, "done": 2}
    best = sorted(range(len(cells)), key=lambda index: (rank.get(cells[index].state, 1), index))[: max(lines, 1)]
    return [cells[index] for index in sorted(best)]


def grid(cells: Sequence[CellStatus]) -> Table:
    """Return the table of cells."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    table.add_column("cell", overflow="fold")
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
    return f"{words}; {clock(left)} of training to go" if left else words


def clock(seconds: int | float) -> str:
    """Return a length of time as hours, minutes, seconds.

    >>> clock(75.2), clock(3700)
    ('1:15', '1:01:40')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
