"""``kd federate``: train a student by clients that have rows of their own."""

from typing import TYPE_CHECKING

import typer

from kdcli.cli import options
from kdcli.cli.switches import Texts, Typed

if TYPE_CHECKING:
    from rich.console import Group

    from kdcli.federated.federate import FederationRecord
    from kdcli.federated.rounds import RoundRecord

EPILOG = """Example: kd federate --clients 8 --split dirichlet:alpha=0.3,by=category --rounds 20 --teacher ./T \
--student ./S --data train.jsonl --eval-data test.jsonl --loss akl --server fedadam:eta=0.03 --max-steps 20 -o fl

Server optimizers, means of adapters and what is measured: docs/federated.md"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    text = "Train a student by clients with rows of their own; average."
    app.command("federate", epilog=EPILOG, short_help=text)(options.federate(federate))


def federate(typed: Typed, *, config: Texts, sets: Texts, json: bool, quiet: bool) -> None:
    """Train a student by clients that have rows of their own; a server averages what they return, round by round.

    The same line again goes on where it stopped. --epochs and --max-steps hold for a client in a round.
    """
    from kdcli.cli import load_config
    from kdcli.cli.terminal import Terminal
    from kdcli.config.schema import FederateConfig

    terminal = Terminal(json, quiet)
    settings = load_config.load_config(FederateConfig, config, sets, typed)
    load_config.require(student=settings.student, data=settings.data.train)
    if load_config.needs_teacher(settings.loss):
        load_config.require(teacher=settings.teacher)
    if settings.data.eval is None:
        load_config.refuse_unused(typed, ("eval_limit",), "has no effect without held-out rows", "add --eval-data")
    load_config.output_folder(settings.output, needed=True)
    load_config.check_inputs(settings)
    with terminal.progress() as report:
        from kdcli.federated import federate as federated

        found = federated.federate(settings, report, command=load_config.command_line())
    terminal.result(found, _drawn)


def _drawn(record: "FederationRecord") -> "Group":
    """Return the table of rounds, and where the student lies."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    sent = 0
    columns = _columns(record.rounds)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for one in record.rounds:
        sent += one.bytes_down + one.bytes_up
        cells = _cells(one, sent)
        table.add_row(*(cells[name] for name in columns))
    measured = "perplexity: of the held-out rows; " if record.rounds[-1].perplexity is not None else ""
    said = Text(f"{measured}{record.clients} clients; sent: down and up so far", style="dim")
    return Group(table, said, Text(str(record.model), overflow="fold"))


def _columns(rounds: "tuple[RoundRecord, ...]") -> list[str]:
    """Return the columns that at least one round has something in."""
    filled = [_cells(one, 1) for one in rounds]
    return [name for name in filled[0] if any(cells[name] for cells in filled)]


def _cells(one: "RoundRecord", sent: int) -> dict[str, str]:
    from kdcli.cli.render import duration
    from kdcli.data.readers import size_text

    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    trained = one.round > 0
    return {
        "round": str(one.round),
        "clients": f"{len(one.returned)}/{len(one.asked)}" if trained else "",
        "tokens": f"{one.tokens:,}" if trained else "",
        "perplexity": number(one.perplexity, ".5g"),
        "gap": number(one.gap, ".3g"),
        "sent": size_text(sent) if trained else "",
        "computing": duration(one.compute_seconds) if one.compute_seconds is not None else "",
        "tokens/s": number(one.tokens_per_second, ",.0f"),
        "granularity": number(one.granularity, ".3g"),
        "tokens/J": number(one.tokens_per_joule, ".3g"),
    }
