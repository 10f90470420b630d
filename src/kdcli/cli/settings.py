"""``kd settings schema``: JSON schema of a command's settings, and of what ``--json`` prints."""

import difflib
import json
import sys
from typing import Annotated, Any

import typer

from kdcli.cli import switches
from kdcli.errors import UsageError
from kdcli.text import one_line

OUTPUT = "output"


def register(app: typer.Typer, group: type[Any]) -> None:
    """Add the commands."""
    text = "The settings of a command as JSON schema."
    settings = typer.Typer(help=text, no_args_is_help=True, rich_markup_mode="rich")
    settings.command("schema", epilog="Example: kd settings schema compare > kd.schema.json", short_help=text)(schema)
    app.add_typer(settings, name="settings", cls=group, rich_help_panel="Catalogues")


def schema(
    command: Annotated[
        str | None, typer.Argument(metavar="COMMAND", help="Default distill. output: what --json prints.")
    ] = None,
    debug: switches.Debug = False,
) -> None:
    """Print the JSON schema of a command's settings file, for editors that complete and check YAML.

    kd settings schema output prints the schema of what --json prints.
    """
    from kdcli.config.schema import KINDS

    kinds = {kind.command: kind for kind in KINDS}
    name = command or "distill"
    if name == OUTPUT:
        from kdcli.cli.json_schema import output_schema

        found = output_schema()
    elif name in kinds:
        found = kinds[name].model_json_schema()
    else:
        near = difflib.get_close_matches(name, [*kinds, OUTPUT], 1)
        fix = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(kinds)}, {OUTPUT}"
        raise UsageError("CLI-01", f'"{one_line(name, 60)}" has no settings', where="kd settings schema", fix=fix)
    sys.stdout.write(json.dumps(found, indent=2, default=str) + "\n")
