"""``kd losses``, ``kd metrics``, ``kd sources`` and ``kd presets``: list, show, check."""

from typing import Annotated, Any

import typer

from kdcli.cli import switches
from kdcli.config.names import OBJECTIVE
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
def list_losses(json: switches.Json = False, quiet: switches.Quiet = False, debug: switches.Debug = False) -> None:
    """List every objective with its formula."""
    from kdcli.cli.terminal import Terminal

    terminal = Terminal(json, quiet)
    with terminal.progress():
        from kdcli.cli import render_catalog
        from kdcli.losses.build import describe
        from kdcli.registry.registry import LOSSES

        cards = [describe(name) for name in LOSSES.names()]
    terminal.result(cards, render_catalog.loss_list)


@_app.command("show", epilog="Example: kd losses show akl")
def show(name: Name, json: switches.Json = False, quiet: switches.Quiet = False, debug: switches.Debug = False) -> None:
    """Explain one objective: formula, reference, options with bounds, cost."""
    from kdcli.cli.terminal import Terminal
    from kdcli.registry.registry import LOSSES

    terminal = Terminal(json, quiet)
    name = LOSSES.canonical(name)
    with terminal.progress():
        from kdcli.cli import render_catalog
        from kdcli.losses.build import describe

        card = describe(name)
    terminal.result(card, render_catalog.loss_card)


@_app.command("check", epilog="Example: kd losses check ./my_loss.py:MyLoss")
def check(
    objective: Annotated[
        str, typer.Argument(metavar=OBJECTIVE.upper(), help="As for --loss: ./my_loss.py:MyLoss, akl:mu=0.6.")
    ],
    json: switches.Json = False,
    quiet: switches.Quiet = False,
    debug: switches.Debug = False,
) -> None:
    """Run the contract that every objective must keep; exit code 3 if one is broken."""
    from kdcli.cli import load_config
    from kdcli.cli.terminal import Terminal

    terminal = Terminal(json, quiet)
    spec = load_config.objective(objective)
    with terminal.progress():
        from kdcli.cli import render_catalog
        from kdcli.losses.build import build_objective
        from kdcli.losses.testing.contract import check_loss

        findings = check_loss(build_objective(spec))
    terminal.result(findings, render_catalog.findings)
    broken = [finding.name for finding in findings if not finding.passed]
    if broken:
        what = f"{len(broken)} of {len(findings)} checks failed: {', '.join(broken)}"
        raise InputError("PLUG-05", one_line(what, 300), where=one_line(objective), fix="see the details above")


@_app.command("conformance")
def conformance(json: switches.Json = False, quiet: switches.Quiet = False, debug: switches.Debug = False) -> None:
    """Print our value beside each published variant's, on fixed logits."""
    from kdcli.cli.terminal import Terminal

    terminal = Terminal(json, quiet)
    with terminal.progress():
        from kdcli.cli import render_catalog
        from kdcli.losses.testing import conformance as suite

        rows = suite.conformance()
    terminal.result(rows, render_catalog.conformance)


# ``kd metrics``: what can be measured.


_metrics_app = typer.Typer(help="List and explain metrics.", no_args_is_help=False, rich_markup_mode="rich")


def register_metrics(app: typer.Typer, group: type[Any]) -> None:
    """Add the commands.

    Args:
        app: the whole program.
        group: class of the group, for its answers to unknown names.
    """
    app.add_typer(_metrics_app, name="metrics", cls=group, rich_help_panel="Catalogues")


@_metrics_app.command("list")
def list_metrics(json: switches.Json = False, quiet: switches.Quiet = False, debug: switches.Debug = False) -> None:
    """List every metric."""
    from kdcli.cli.terminal import Terminal

    terminal = Terminal(json, quiet)
    with terminal.progress():
        from kdcli.cli import render_catalog
        from kdcli.metrics.describe import cards

        found = cards()
    terminal.result(found, render_catalog.metric_list)


@_metrics_app.command("show", epilog="Example: kd metrics show rougeL")
def show_metrics(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name of kd metrics list.")],
    json: switches.Json = False,
    quiet: switches.Quiet = False,
    debug: switches.Debug = False,
) -> None:
    """Explain one metric: what it reads, its scores and their direction, its settings."""
    from kdcli.cli.terminal import Terminal

    terminal = Terminal(json, quiet)
    with terminal.progress():
        from kdcli.cli import render_catalog
        from kdcli.metrics.describe import describe

        card = describe(name)
    terminal.result(card, render_catalog.metric_card)


# ``kd presets``: published training systems, by name.


_presets_app = typer.Typer(help="List and show training presets.", no_args_is_help=False, rich_markup_mode="rich")


def register_presets(app: typer.Typer, group: type[Any]) -> None:
    """Add the commands.

    Args:
        app: the whole program.
        group: class of the group, for its answers to unknown names.
    """
    app.add_typer(_presets_app, name="presets", cls=group, rich_help_panel="Catalogues")


@_presets_app.command("list")
def list_presets(json: switches.Json = False, quiet: switches.Quiet = False, debug: switches.Debug = False) -> None:
    """List every preset that --config takes by name."""
    from kdcli.cli.terminal import Terminal

    terminal = Terminal(json, quiet)
    with terminal.progress():
        from kdcli.cli import render_catalog
        from kdcli.config.presets import cards

        found = cards()
    terminal.result(found, render_catalog.preset_list)


@_presets_app.command("show", epilog="Example: kd presets show gkd > gkd.yaml")
def show_presets(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name of kd presets list.")],
    json: switches.Json = False,
    quiet: switches.Quiet = False,
    debug: switches.Debug = False,
) -> None:
    """Print one preset: paper and section, what the published code does otherwise, its settings."""
    from kdcli.cli.terminal import Terminal

    terminal = Terminal(json, quiet)
    with terminal.progress():
        from kdcli.cli import render_catalog
        from kdcli.config.presets import describe

        card = describe(name)
    terminal.result(card, render_catalog.preset_card)


# ``kd sources``: where training sequences may come from.


_sources_app = typer.Typer(
    help="List and explain sources of training sequences.", no_args_is_help=False, rich_markup_mode="rich"
)


def register_sources(app: typer.Typer, group: type[Any]) -> None:
    """Add the commands.

    Args:
        app: the whole program.
        group: class of the group, for its answers to unknown names.
    """
    app.add_typer(_sources_app, name="sources", cls=group, rich_help_panel="Catalogues")


@_sources_app.command("list")
def list_sources(json: switches.Json = False, quiet: switches.Quiet = False, debug: switches.Debug = False) -> None:
    """List every source; an objective names one behind @, as in jsd@student:rate=0.5."""
    from kdcli.cli.terminal import Terminal

    terminal = Terminal(json, quiet)
    with terminal.progress():
        from kdcli.cli import render_catalog
        from kdcli.sources.build import cards

        found = cards()
    terminal.result(found, render_catalog.source_list)


@_sources_app.command("show", epilog="Example: kd sources show student")
def show_sources(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name of kd sources list, or ./file.py:Class.")],
    json: switches.Json = False,
    quiet: switches.Quiet = False,
    debug: switches.Debug = False,
) -> None:
    """Explain one source: what it needs, the facts it supplies, its options with bounds."""
    from kdcli.cli.terminal import Terminal
    from kdcli.registry.registry import SOURCES

    terminal = Terminal(json, quiet)
    name = SOURCES.canonical(name)
    with terminal.progress():
        from kdcli.cli import render_catalog
        from kdcli.sources.build import describe

        card = describe(name)
    terminal.result(card, render_catalog.source_card)
