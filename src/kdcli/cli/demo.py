"""``kd demo``: everything once, on built-in models and data."""

from pathlib import Path
from typing import Annotated

import typer

from kdcli.cli import switches
from kdcli.config.names import OUTPUT
from kdcli.errors import UsageError


def register(app: typer.Typer) -> None:
    """Add the command."""
    text = "See all of it work in three minutes: no network, no data, no arguments."
    app.command("demo", epilog="Example: kd demo -o demo", short_help=text)(demo)


def demo(
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FOLDER", help="Folder to write.", rich_help_panel=OUTPUT)
    ] = "demo",
    json: switches.Json = False,
    quiet: switches.Quiet = False,
    verbose: switches.Verbose = False,
    show: Annotated[bool, switches.switch("--open", "Open the report in a browser.", OUTPUT)] = False,
    debug: switches.Debug = False,
) -> None:
    """Make data and a teacher, distil four objectives, compare them, draw the table.

    Takes about three minutes on two cores; needs no network. The same line again starts only what is missing.
    """
    from kdcli.cli.load_config import output_folder
    from kdcli.cli.terminal import Terminal
    from kdcli.config.resolve import expanded

    terminal = Terminal(json, quiet)
    output = expanded(output, "-o")
    output_folder(output, needed=True)
    with terminal.progress() as report:
        from kdcli.cli import render
        from kdcli.demo import demo as runs

        found = runs.demo(Path(output), report)
    pictures = sorted(path for path in Path(output).glob("*.png"))
    if verbose:
        terminal.result(found, lambda shown: render.comparison(shown, terminal.width))
    else:
        terminal.result(found, lambda shown: render.answer(shown, terminal.width, pictures=pictures))
    if show and typer.launch(str(Path(output) / render.REPORT)) != 0:
        terminal.note(f"no browser was found; the report is {Path(output) / render.REPORT}")
    if found.exit_code:
        raise typer.Exit(found.exit_code)


# ``kd toy``: two experiments that show what a divergence does.


def register_toy(app: typer.Typer) -> None:
    """Add the command."""
    text = "See what objectives do to a distribution: head and tail, one mode or both."
    app.command("toy", epilog="Example: kd toy fkl rkl akl 'jsd:beta=0.3' -o toy", short_help=text)(toy)


def toy(
    objectives: Annotated[
        list[str] | None,
        typer.Argument(metavar="OBJECTIVE", help="As for --loss. Default fkl rkl akl jsd.", show_default=False),
    ] = None,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FOLDER", help="Folder to write.", rich_help_panel=OUTPUT)
    ] = "toy",
    json: switches.Json = False,
    quiet: switches.Quiet = False,
    debug: switches.Debug = False,
) -> None:
    """Fit a categorical to a long-tailed teacher, and one Gaussian to two bumps, under each objective.

    Writes figures and data; needs no model and takes seconds.
    """
    from kdcli.cli.load_config import output_folder
    from kdcli.cli.terminal import Terminal
    from kdcli.config.resolve import expanded
    from kdcli.interface import objective

    terminal = Terminal(json, quiet)
    specs = [objective(text) for text in objectives or ("fkl", "rkl", "akl", "jsd")]
    twice = [spec for spec in specs if specs.count(spec) > 1]
    if twice:
        raise UsageError("CLI-08", f"{twice[0]} given twice", where="kd toy", fix="name each objective once")
    output = expanded(output, "-o")
    output_folder(output, needed=True)
    with terminal.progress() as report:
        from kdcli.cli import render_diagnostics
        from kdcli.demo import toy as runs

        found = runs.toy(specs, Path(output), report)
    terminal.result(found, render_diagnostics.toy)
