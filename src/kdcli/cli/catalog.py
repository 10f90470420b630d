"""``kd losses``, ``metrics``, ``sources``, ``scores`` and ``presets``: list and show; objectives are checked, too."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

import typer

from kdcli.cli import switches
from kdcli.config.names import OBJECTIVE
from kdcli.errors import InputError
from kdcli.text import one_line


class _Catalogue(NamedTuple):
    """What ``list`` and ``show`` need, once it is imported."""

    cards: Callable[[], Sequence[Any]]
    describe: Callable[[str], Any]
    render_list: Callable[[Any], Any]
    render_card: Callable[[Any], Any]


def _losses() -> _Catalogue:
    from kdcli.cli import render_catalog
    from kdcli.losses.build import cards, describe

    return _Catalogue(cards, describe, render_catalog.loss_list, render_catalog.loss_card)


def _metrics() -> _Catalogue:
    from kdcli.cli import render_catalog
    from kdcli.metrics.describe import cards, describe

    return _Catalogue(cards, describe, render_catalog.metric_list, render_catalog.metric_card)


def _sources() -> _Catalogue:
    from kdcli.cli import render_catalog
    from kdcli.sources.build import cards, describe

    return _Catalogue(cards, describe, render_catalog.source_list, render_catalog.source_card)


def _scores() -> _Catalogue:
    from kdcli.cli import render_catalog
    from kdcli.scores.build import cards, describe

    return _Catalogue(cards, describe, render_catalog.score_list, render_catalog.score_card)


def _presets() -> _Catalogue:
    from kdcli.cli import render_catalog
    from kdcli.config.presets import cards, describe

    return _Catalogue(cards, describe, render_catalog.preset_list, render_catalog.preset_card)


def register(app: typer.Typer, group: type[Any]) -> None:
    """Add the commands.

    Args:
        app: the whole program.
        group: class of the groups, for their answers to unknown names.
    """
    losses = _group(
        "losses", _losses, "List, explain and check objectives.", "List every objective with its formula.",
        "Explain one objective: formula, reference, options with bounds, cost.", "akl", registry="LOSSES",
    )  # fmt: skip
    losses.command("check", epilog="Example: kd losses check ./my_loss.py:MyLoss")(check)
    losses.command("conformance")(conformance)
    metrics = _group(
        "metrics", _metrics, "List and explain metrics.", "List every metric.",
        "Explain one metric: what it reads, its scores and their direction, its settings.", "rougeL",
    )  # fmt: skip
    sources = _group(
        "sources", _sources, "List and explain sources of training sequences.",
        "List every source; an objective names one behind @, as in jsd@student:rate=0.5.",
        "Explain one source: what it needs, the facts it supplies, its options with bounds.", "student",
        registry="SOURCES",
    )  # fmt: skip
    scores = _group(
        "scores", _scores, "List and explain scores of rows.", "List every score that kd data score takes behind --by.",
        "Explain one score: formula, reference, what it is measured with, its options with bounds.", "tracin",
        registry="SCORES",
    )  # fmt: skip
    presets = _group(
        "presets", _presets, "List and show training presets.", "List every preset that --config takes by name.",
        "Print one preset: paper and section, what the published code does otherwise, its settings.", "gkd > gkd.yaml",
    )  # fmt: skip
    groups = {"losses": losses, "metrics": metrics, "sources": sources, "scores": scores, "presets": presets}
    for name, one in groups.items():
        app.add_typer(one, name=name, cls=group, rich_help_panel="Catalogues")


def _group(
    name: str, load: Callable[[], _Catalogue], about: str, of_list: str, of_show: str, example: str, *,
    registry: str = "",
) -> typer.Typer:  # fmt: skip
    """Return the group of commands of one catalogue, with ``list`` and ``show``.

    Args:
        name: of the group.
        load: imports what the commands need.
        about: help of the group.
        of_list: help of ``list``.
        of_show: help of ``show``.
        example: what the example of ``show`` ends with.
        registry: of plug-ins, if ``show`` takes one's file; knows a wrong name before anything is imported.
    """
    commands = typer.Typer(help=about, no_args_is_help=False, rich_markup_mode="rich")
    named = f"A name of kd {name} list{', or ./file.py:Class' if registry else ''}."

    def complete(incomplete: str) -> list[str]:
        from kdcli.cli.complete import named as names

        return names(name, incomplete)

    @commands.command("list", help=of_list)
    def list_all(json: switches.Json = False, quiet: switches.Quiet = False, debug: switches.Debug = False) -> None:
        from kdcli.cli.terminal import Terminal

        terminal = Terminal(json, quiet)
        with terminal.progress():
            catalogue = load()
            cards = catalogue.cards()
        terminal.result(cards, catalogue.render_list)

    @commands.command("show", help=of_show, epilog=f"Example: kd {name} show {example}")
    def show(
        name: Annotated[str, typer.Argument(metavar="NAME", help=named, autocompletion=complete)],
        json: switches.Json = False,
        quiet: switches.Quiet = False,
        debug: switches.Debug = False,
    ) -> None:
        from kdcli.cli.terminal import Terminal

        terminal = Terminal(json, quiet)
        if registry:
            from kdcli.registry import registry as registries

            name = getattr(registries, registry).canonical(name)
        with terminal.progress():
            catalogue = load()
            card = catalogue.describe(name)
        terminal.result(card, catalogue.render_card)

    return commands


def check(
    objective: Annotated[
        str, typer.Argument(metavar=OBJECTIVE.upper(), help="As for --loss: ./my_loss.py:MyLoss, akl:mu=0.6.")
    ],
    json: switches.Json = False,
    quiet: switches.Quiet = False,
    debug: switches.Debug = False,
) -> None:
    """Run the contract checks on an objective; exit code 3 if one fails."""
    from kdcli import interface
    from kdcli.cli.terminal import Terminal

    terminal = Terminal(json, quiet)
    spec = interface.objective(objective)
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


def conformance(json: switches.Json = False, quiet: switches.Quiet = False, debug: switches.Debug = False) -> None:
    """Compare our values with those of published variants, on fixed logits."""
    from kdcli.cli.terminal import Terminal

    terminal = Terminal(json, quiet)
    with terminal.progress():
        from kdcli.cli import render_catalog
        from kdcli.losses.testing import conformance as suite

        rows = suite.conformance()
    terminal.result(rows, render_catalog.conformance)
