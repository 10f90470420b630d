"""``kd metrics``: what can be measured."""

from typing import Annotated, Any

import typer

from kdcli.cli import flags

_app = typer.Typer(help="List and explain metrics.", no_args_is_help=False, rich_markup_mode="rich")


def register(app: typer.Typer, group: type[Any]) -> None:
    """Add the commands.

    Args:
        app: the whole program.
        group: class of the group, for its answers to unknown names.
    """
    app.add_typer(_app, name="metrics", cls=group, rich_help_panel="Catalogues")


@_app.command("list")
def list_metrics(json: flags.Json = False, quiet: flags.Quiet = False, debug: flags.Debug = False) -> None:
    """List every metric."""
    from kdcli.cli.terminal import Terminal

    terminal = Terminal(json, quiet)
    with terminal.work():
        from kdcli.cli import render_catalogue
        from kdcli.metrics.describe import cards

        found = cards()
    terminal.result(found, render_catalogue.metric_list)


@_app.command("show", epilog="Example: kd metrics show rougeL")
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name of kd metrics list.")],
    json: flags.Json = False,
    quiet: flags.Quiet = False,
    debug: flags.Debug = False,
) -> None:
    """Explain one metric: what it reads, its scores and their direction, its settings."""
    from kdcli.cli.terminal import Terminal

    terminal = Terminal(json, quiet)
    with terminal.work():
        from kdcli.cli import render_catalogue
        from kdcli.metrics.describe import describe

        card = describe(name)
    terminal.result(card, render_catalogue.metric_card)
