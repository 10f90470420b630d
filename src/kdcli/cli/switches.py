"""Flags that are no settings, declared once: the same name means the same on all commands."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from kdcli.config.names import HARDWARE, MODELS, OUTPUT, TABLE
from kdcli.registry import plugins

Text = str | None
Texts = list[str] | None
Typed = Mapping[str, Any]
"""Settings as typed: flag in snake case -> text or texts, True for a switch, None or False where nothing was typed."""

Run = Callable[..., None]
"""What a command does, called with the settings as typed, and with its switches by name."""


COMPLETED = (
    "--loss", "--baseline", "--metric", "--source", "--config", "--set", "--report-to", "--device", "--dtype",
    "--shard", "--executor", "--kind", "--store-dtype", "OBJECTIVE", "OBJECTIVE|RUN|STUDY",
)  # fmt: skip
"""Flags and arguments whose values ``complete.py`` knows; it is imported when a shell asks."""


def _completing(name: str) -> dict[str, Any]:
    """Return what completes the value of a flag or argument; nothing where the shell's own paths do."""
    if name not in COMPLETED:
        return {}

    def complete(incomplete: str) -> list[str]:
        from kdcli.cli.complete import COMPLETERS

        return COMPLETERS[name](incomplete)

    return {"autocompletion": complete}


def flag(
    spelling: str, metavar: str, text: str, panel: str, *, hidden: bool = False, completes: bool = True, **more: Any
) -> Any:
    """Return a flag that takes a value.

    Args:
        spelling: its forms, with a space between.
        metavar: what stands for the value.
        text: its line of the help.
        panel: heading that it stands under.
        hidden: leave it out of the help.
        completes: let the shell complete its value, where its name is one of ``COMPLETED``.
        more: further arguments of ``typer.Option``.
    """
    return typer.Option(
        *spelling.split(),
        metavar=metavar,
        help=text,
        rich_help_panel=panel,
        show_default=False,
        hidden=hidden,
        **(_completing(spelling.split()[0]) if metavar and completes else {}),
        **more,
    )


def switch(spelling: str, text: str, panel: str, *, hidden: bool = False) -> Any:
    """Return a flag that takes no value; arguments as for :func:`flag`."""
    return flag(spelling, "", text, panel, hidden=hidden)


def argument(metavar: str, text: str) -> Any:
    """Return what is given without a flag; arguments as for :func:`flag`."""
    return typer.Argument(metavar=metavar, help=text, show_default=False, **_completing(metavar))


def _code(spelling: str, metavar: str, text: str, panel: str, *, hidden: bool = False) -> Any:
    """Return a flag whose values name code that the command may run."""

    def permit(values: list[str] | None) -> list[str] | None:
        plugins.permit(values or ())
        return values

    return flag(spelling, metavar, text, panel, hidden=hidden, callback=permit)


Config = Annotated[Texts, flag("--config -c", "FILE", "Settings as YAML; a run's config.yaml is one.", OUTPUT)]
Sets = Annotated[Texts, flag("--set", "KEY=VALUE", "Any setting, as train.clip=0.5; repeatable.", OUTPUT)]
Plugin = Annotated[Texts, _code("--plugin", "FILE", "Allow code of this plug-in to run.", OUTPUT)]
HiddenPlugin = Annotated[Texts, _code("--plugin", "FILE", "As for kd rerun.", OUTPUT, hidden=True)]
Resume = Annotated[Text, flag("--resume", "auto|never", "auto resumes what the folder holds.", OUTPUT)]
DryRun = Annotated[bool, switch("--dry-run", "Show plan and examples; write nothing.", OUTPUT)]
Json = Annotated[bool, switch("--json", "Print the result as JSON.", OUTPUT)]
Quiet = Annotated[bool, switch("--quiet", "Print the result only, no progress.", OUTPUT)]
Verbose = Annotated[bool, switch("--verbose", "All scores, costs and remarks.", OUTPUT)]
HiddenQuiet = Annotated[bool, switch("--quiet", "No progress.", OUTPUT, hidden=True)]
Debug = Annotated[bool, switch("--debug", "Show tracebacks.", OUTPUT, hidden=True)]

PushToHub = Annotated[Text, flag("--push-to-hub", "ID", "Upload the student at the end.", MODELS)]
GpuMemory = Annotated[Text, flag("--gpu-memory", "SIZE", "Plan for other GPUs, as 80GiB each.", HARDWARE)]

Status = Annotated[bool, switch("--status", "Progress of a study; loads no model.", OUTPUT)]
By = Annotated[Text, flag("--by", "SCORE", "What says who is best. Default the first.", TABLE)]
To = Annotated[Text, flag("--to", "FILE", "Write it: .tex .md .html .csv .json .parquet", TABLE)]
Layout = Annotated[Text, flag("--layout", "NAME", "wide, two-rows or value-delta; with --to.", TABLE)]
Titles = Annotated[Text, flag("--titles", "NAME=TEXT", "Own names of scores and lines; with --to.", TABLE)]
Digits = Annotated[Text, flag("--digits", "N", "Significant digits of intervals. Default 2.", TABLE)]
Caption = Annotated[Text, flag("--caption", "TEXT", "Default: models, rows, seeds, protocol.", TABLE)]
Label = Annotated[Text, flag("--label", "NAME", "For references in LaTeX.", TABLE)]

Objectives = Annotated[Texts, argument("OBJECTIVE", "As for --loss.")]
Rows = Annotated[Text, typer.Option("--rows", metavar="N", help="Rows of the batch. Default 8.", show_default=False)]
