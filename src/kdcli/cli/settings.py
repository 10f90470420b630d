"""``kd settings schema``: JSON schema of a command's settings, and of what ``--json`` prints."""

import difflib
import importlib
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
        found = output_schema()
    elif name in kinds:
        found = kinds[name].model_json_schema()
    else:
        near = difflib.get_close_matches(name, [*kinds, OUTPUT], 1)
        fix = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(kinds)}, {OUTPUT}"
        raise UsageError("CLI-01", f'"{one_line(name, 60)}" has no settings', where="kd settings schema", fix=fix)
    sys.stdout.write(json.dumps(found, indent=2, default=str) + "\n")


# What ``--json`` prints: a document of each kind, lists, and errors.


_MISTAKE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "code": {"type": "string", "description": "stable identifier, such as DATA-03"},
        "what": {"type": "string"},
        "where": {"type": "string"},
        "fix": {"type": "string"},
        "exit_code": {"type": "integer"},
    },
    "required": ["code", "what", "where", "fix", "exit_code"],
    "additionalProperties": False,
}
_ALSO = {"type": "array", "items": _MISTAKE, "description": "further mistakes, found at the same time"}
ERROR = {**_MISTAKE, "properties": {**_MISTAKE["properties"], "also": _ALSO}}


def output_schema() -> dict[str, Any]:
    """Return the schema of every document that ``--json`` prints, each by its ``kind``, and of the lists.

    A number that is not finite is printed as null, so null is allowed wherever a number is.
    """
    from pydantic import TypeAdapter

    from kdcli.cli.terminal import KINDS, LISTS

    asked: list[tuple[str, Any, TypeAdapter[Any]]] = [
        (place, "serialization", TypeAdapter(_record(place))) for place in dict.fromkeys((*KINDS, *LISTS))
    ]
    made, shared = TypeAdapter.json_schemas(asked, ref_template="#/$defs/{model}")
    definitions: dict[str, Any] = dict(shared.get("$defs", {}))
    kinds: list[dict[str, Any]] = []
    for place, kind in KINDS.items():
        found = made[place, "serialization"]
        one = dict(definitions[found["$ref"].rpartition("/")[2]] if "$ref" in found else found)
        one["properties"] = one["properties"] | _head(kind)
        one["required"] = ["schema_version", "kind", *one.get("required", [])]
        kinds.append(one)
    lists = [{"type": "array", "items": made[place, "serialization"]} for place in LISTS]
    kinds.append(
        {
            "title": "Error",
            "type": "object",
            "properties": {**_head("error"), "error": ERROR},
            "required": ["schema_version", "kind", "error"],
        }
    )
    whole = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "kd --json",
        "anyOf": [{"oneOf": kinds}, *lists],
        "$defs": definitions,
    }
    return _with_null(whole)


def _record(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def _head(kind: str) -> dict[str, Any]:
    from kdcli.cli.terminal import SCHEMA_VERSION

    return {"schema_version": {"const": SCHEMA_VERSION}, "kind": {"const": kind}}


def _with_null(value: Any) -> Any:
    """Allow null wherever a number is allowed."""
    if isinstance(value, dict):
        found = {key: _with_null(item) for key, item in value.items()}
        return found | {"type": ["number", "null"]} if found.get("type") == "number" else found
    return [_with_null(item) for item in value] if isinstance(value, list) else value
