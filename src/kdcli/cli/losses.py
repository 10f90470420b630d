"""``kd losses``: what objectives there are, and whether a guest keeps the contract."""

from typing import Annotated, Any

import typer

from kdcli.cli import flags
from kdcli.cli.flags import OBJECTIVE
from kdcli.errors import InputError
from kdcli.text import one_line

Name = Annotated[str, typer.Argument(metavar="NAME", help="A name of kd losses list, or ./file.py:Class.")]

_app = typer.Typer(help="List, explain and check objectives.", no_args_is_help=False, rich_markup_mode="rich")


def register(app: typer.Typer, group: type[Any]) -> None:
    """Add the commands.

    Args:
        app: the whole program.
        group: class of the group, for its answers to unknown names.
    """
    app.add_typer(_app, name="losses", cls=group, rich_help_panel="Catalogues")


@_app.command("list")
def list_losses(json: flags.Json = False, quiet: flags.Quiet = False, debug: flags.Debug = False) -> None:
    """List every objective with its formula."""
    from kdcli.cli.terminal import Terminal

    terminal = Terminal(json, quiet)
    with terminal.work():
        from kdcli.cli import render_catalogue
        from kdcli.losses.describe import describe
        from kdcli.registry import LOSSES

        cards = [describe(name) for name in LOSSES.names()]
    terminal.result(cards, render_catalogue.loss_list)


@_app.command("show", epilog="Example: kd losses show akl")
def show(name: Name, json: flags.Json = False, quiet: flags.Quiet = False, debug: flags.Debug = False) -> None:
    """Explain one objective: formula, reference, options with bounds, cost."""
    from kdcli.cli.terminal import Terminal
    from kdcli.registry import LOSSES

    terminal = Terminal(json, quiet)
    name = LOSSES.canonical(name)
    with terminal.work():
        from kdcli.cli import render_catalogue
        from kdcli.losses.describe import describe

        card = describe(name)
    terminal.result(card, render_catalogue.loss_card)


@_app.command("check", epilog="Example: kd losses check ./my_loss.py:MyLoss")
def check(
    objective: Annotated[
        str, typer.Argument(metavar=OBJECTIVE.upper(), help="As for --loss: ./my_loss.py:MyLoss, akl:mu=0.6.")
    ],
    json: flags.Json = False,
    quiet: flags.Quiet = False,
    debug: flags.Debug = False,
) -> None:
    """Run the contract that every objective must keep; exit code 3 if one is broken."""
    from kdcli.cli import settle
    from kdcli.cli.terminal import Terminal

    terminal = Terminal(json, quiet)
    spec = settle.objective(objective)
    with terminal.work():
        from kdcli.cli import render_catalogue
        from kdcli.losses.build import build_objective
        from kdcli.losses.contract import check_loss

        findings = check_loss(build_objective(spec))
    terminal.result(findings, render_catalogue.findings)
    broken = [finding.name for finding in findings if not finding.passed]
    if broken:
        what = f"{len(broken)} of {len(findings)} checks failed: {', '.join(broken)}"
        raise InputError("PLUG-05", one_line(what, 300), where=one_line(objective), fix="see the details above")


@_app.command("conformance")
def conformance(json: flags.Json = False, quiet: flags.Quiet = False, debug: flags.Debug = False) -> None:
    """Print our value beside each published variant's, on fixed logits."""
    from kdcli.cli.terminal import Terminal

    terminal = Terminal(json, quiet)
    with terminal.work():
        from kdcli.cli import render_catalogue
        from kdcli.losses import conformance as suite

        rows = suite.conformance()
    terminal.result(rows, render_catalogue.conformance)
