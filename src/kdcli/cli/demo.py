"""``kd demo``: the whole road on built-in parts."""

from pathlib import Path
from typing import Annotated

import typer

from kdcli.cli import flags


def register(app: typer.Typer) -> None:
    """Add the command."""
    text = "See all of it work in three minutes: no network, no data, no arguments."
    app.command("demo", epilog="Example: kd demo -o demo", short_help=text)(demo)


def demo(
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FOLDER", help="Folder to write.", rich_help_panel=flags.OUTPUT)
    ] = "demo",
    json: flags.Json = False,
    quiet: flags.Quiet = False,
    debug: flags.Debug = False,
) -> None:
    """Make data and a teacher, distil four objectives, compare them, draw the table.

    Takes about three minutes on two cores; needs no network. The same line again starts only what is missing.
    """
    from kdcli.cli.settle import output_folder
    from kdcli.cli.terminal import Terminal
    from kdcli.settings import expanded

    terminal = Terminal(json, quiet)
    output = expanded(output, "-o")
    output_folder(output, needed=True)
    with terminal.work() as report:
        from kdcli.cli import render
        from kdcli.runs import demo as runs

        found = runs.demo(Path(output), report)
    terminal.result(found, lambda shown: render.comparison(shown, terminal.width))
    if found.exit_code:
        raise typer.Exit(found.exit_code)
