"""``kd sources``: where training sequences may come from."""

from typing import Annotated, Any

import typer

from kdcli.cli import flags

_app = typer.Typer(
    help="List and explain sources of training sequences.", no_args_is_help=False, rich_markup_mode="rich"
)


def register(app: typer.Typer, group: type[Any]) -> None:
    """Add the commands.

    Args:
        app: the whole program.
        group: class of the group, for its answers to unknown names.
    """
    app.add_typer(_app, name="sources", cls=group, rich_help_panel="Catalogues")


@_app.command("list")
def list_sources(json: flags.Json = False, quiet: flags.Quiet = False, debug: flags.Debug = False) -> None:
    """List every source; an objective names one behind @, as in jsd@student:rate=0.5."""
    from kdcli.cli.terminal import Terminal

    terminal = Terminal(json, quiet)
    with terminal.work():
        from kdcli.cli import render_catalogue
        from kdcli.sources.describe import cards

        found = cards()
    terminal.result(found, render_catalogue.source_list)


@_app.command("show", epilog="Example: kd sources show student")
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name of kd sources list, or ./file.py:Class.")],
    json: flags.Json = False,
    quiet: flags.Quiet = False,
    debug: flags.Debug = False,
) -> None:
    """Explain one source: what it needs, the facts it supplies, its options with bounds."""
    from kdcli.cli.terminal import Terminal
    from kdcli.registry import SOURCES

    terminal = Terminal(json, quiet)
    name = SOURCES.canonical(name)
    with terminal.work():
        from kdcli.cli import render_catalogue
        from kdcli.sources.describe import describe

        card = describe(name)
    terminal.result(card, render_catalogue.source_card)
