"""What ``--json`` prints, as JSON schema: a document of each kind, lists, and errors."""

import importlib
from typing import Any

from pydantic import TypeAdapter

from kdcli.cli.terminal import KINDS, LISTS, SCHEMA_VERSION

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
    return {"schema_version": {"const": SCHEMA_VERSION}, "kind": {"const": kind}}


def _with_null(value: Any) -> Any:
    """Allow null wherever a number is allowed."""
    if isinstance(value, dict):
        found = {key: _with_null(item) for key, item in value.items()}
        return found | {"type": ["number", "null"]} if found.get("type") == "number" else found
    return [_with_null(item) for item in value] if isinstance(value, list) else value
