"""``kd presets``: published training systems, by name."""

from typing import Annotated, Any

import typer

from kdcli.cli import flags

_app = typer.Typer(help="List and show training presets.", no_args_is_help=False, rich_markup_mode="rich")


def register(app: typer.Typer, group: type[Any]) -> None:
    """Add the commands.

    Args:
        app: the whole program.
        group: class of the group, for its answers to unknown names.
    """
    app.add_typer(_app, name="presets", cls=group, rich_help_panel="Catalogues")


@_app.command("list")
def list_presets(json: flags.Json = False, quiet: flags.Quiet = False, debug: flags.Debug = False) -> None:
    """List every preset that --config takes by name."""
    from kdcli.cli.terminal import Terminal

    terminal = Terminal(json, quiet)
    with terminal.work():
        from kdcli.cli import render_catalogue
        from kdcli.training_presets import cards

        found = cards()
    terminal.result(found, render_catalogue.preset_list)


@_app.command("show", epilog="Example: kd presets show gkd > gkd.yaml")
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name of kd presets list.")],
    json: flags.Json = False,
    quiet: flags.Quiet = False,
    debug: flags.Debug = False,
) -> None:
    """Print one preset: paper and section, what the published code does otherwise, its settings."""
    from kdcli.cli.terminal import Terminal

    terminal = Terminal(json, quiet)
    with terminal.work():
        from kdcli.cli import render_catalogue
        from kdcli.training_presets import describe

        card = describe(name)
    terminal.result(card, render_catalogue.preset_card)
