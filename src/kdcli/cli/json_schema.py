"""What ``--json`` prints, as JSON schema: runs, evaluations, comparisons, plans, exports and errors."""

from typing import Any

from pydantic import TypeAdapter

from kdcli.cli.terminal import KINDS, SCHEMA_VERSION

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
    """Return the schema of every document that ``--json`` prints, each by its ``kind``.

    A number that is not finite is printed as null, so null is allowed wherever a number is.
    """
    from kdcli.comparison.records import Comparison
    from kdcli.distill.make_export import ExportRecord
    from kdcli.distill.plan import Plan
    from kdcli.distill.records import RunRecord
    from kdcli.evaluation.records import EvalRecord

    definitions: dict[str, Any] = {}
    kinds: list[dict[str, Any]] = []
    for record in (RunRecord, EvalRecord, Comparison, Plan, ExportRecord):
        made = TypeAdapter(record).json_schema(mode="serialization", ref_template="#/$defs/{model}")
        definitions |= made.pop("$defs", {})
        made["properties"] |= _head(KINDS[record.__name__])
        made["required"] = ["schema_version", "kind", *made.get("required", [])]
        kinds.append(made)
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
        "oneOf": kinds,
        "$defs": definitions,
    }
    return _with_null(whole)


def _head(kind: str) -> dict[str, Any]:
    return {"schema_version": {"const": SCHEMA_VERSION}, "kind": {"const": kind}}


def _with_null(value: Any) -> Any:
    """Allow null wherever a number is allowed."""
    if isinstance(value, dict):
        found = {key: _with_null(item) for key, item in value.items()}
        return found | {"type": ["number", "null"]} if found.get("type") == "number" else found
    return [_with_null(item) for item in value] if isinstance(value, list) else value
