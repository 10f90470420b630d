"""One setting's type: reads it from text or from a file's value, and says in words what it takes."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from kdcli.config_file import scalar
from kdcli.spelling import nearest
from kdcli.text import one_line

Fault = Callable[[str, str, str], Exception]
"""Makes the error of the place a value was given in, from code, what and fix."""

_ANNOTATED: Any = Annotated

MOST = 10**12
"""The greatest whole number that is read where a setting has no bound of its own."""

SPACED = ("losses", "vary", "tune")
"""Lists whose items may hold commas: a text is split at spaces."""


@dataclass(frozen=True)
class Setting:
    """A leaf of a config.

    Args:
        path: dotted name, such as ``train.lr``.
        info: the field behind it.
    """

    path: str
    info: FieldInfo

    @cached_property
    def adapter(self) -> TypeAdapter:
        """What checks a value."""
        return TypeAdapter(_ANNOTATED[self.info.annotation, self.path, *self.info.metadata])

    @cached_property
    def schema(self) -> dict[str, Any]:
        """The JSON schema of the values, without the possibility of None."""
        schema = self.adapter.json_schema()
        options = [option for option in schema.get("anyOf", [schema]) if option.get("type") != "null"]
        return options[0]

    @property
    def optional(self) -> bool:
        """Whether None is a value."""
        return "anyOf" in self.adapter.json_schema()

    def from_text(self, text: str | Sequence[str], fault: Fault) -> Any:
        """Read a flag's, ``--set``'s or variable's text; lists are split at commas.

        Args:
            text: as typed; a sequence is a list split already.
            fault: makes the error.
        """
        value: Any = text
        if self.schema["type"] == "array":
            value = self._pieces(text) if isinstance(text, str) else list(text)
            if not value and isinstance(text, str) and text.strip() not in ("", "[]"):
                raise fault("CLI-06", f'"{one_line(text, 40)}" names nothing', "give names with commas between them")
        elif self.schema["type"] == "object" and isinstance(text, str):
            value = dict(self._pairs(text, fault))
        elif self.optional and self.schema["type"] != "string" and text in ("null", "none"):
            value = None
        try:
            return self._held(self.adapter.validate_python(value), fault, "CLI-07")
        except ValidationError as error:
            raise self._mismatch(error, value, fault, "CLI") from None

    def from_file(self, value: Any, fault: Fault) -> Any:
        """Check a file's value, which must have the type; one word stands for a list of one."""
        if self.schema["type"] in ("array", "object") and isinstance(value, str):
            return self.from_text(value, fault)
        if self.schema["type"] == "array" and not isinstance(value, list | dict | None):
            value = [value]
        try:
            return self._held(self.adapter.validate_json(json.dumps(value), strict=True), fault, "CFG-09")
        except ValidationError as error:
            raise self._mismatch(error, value, fault, "CFG") from None

    def _held(self, value: Any, fault: Fault, code: str) -> Any:
        """Return a value, unless it is a whole number that no count of anything reaches."""
        schema = self.schema.get("items", self.schema)
        bounded = {"maximum", "exclusiveMaximum"} & set(schema)
        for number in value if isinstance(value, tuple | list) else (value,):
            if isinstance(number, int) and not bounded and abs(number) > MOST:
                what = f"{self.path} must be at most 10**12, got a number of {len(str(abs(number)))} digits"
                raise fault(code, what, self._example())
        return value

    def _pieces(self, text: str) -> list[str]:
        separator = None if self.path in SPACED else ","
        return [piece.strip() for piece in text.strip("[]").split(separator) if piece.strip()]

    def _pairs(self, text: str, fault: Fault) -> Iterator[tuple[str, str]]:
        for piece in text.strip("{}").split(","):
            name, equals, column = piece.partition("=")
            if not (equals and name.strip() and column.strip()):
                raise fault("CLI-06", f'"{one_line(piece.strip())}" is not name=column', "write prompt=question")
            yield name.strip(), column.strip()

    def _mismatch(self, error: ValidationError, value: Any, fault: Fault, family: str) -> Exception:
        first = error.errors()[0]
        for step in first["loc"]:
            value = _inside(value, step)
        code, fix = _code_and_fix(first["type"], self.schema, value, family)
        name = f"{self.path} " if family == "CFG" else ""
        shown = f'"{one_line(value, 60)}"' if family == "CLI" and isinstance(value, str) else _shown(value)
        return fault(code, f"{name}must be {describe(self.schema)}, got {shown}", fix or self._example())

    def _example(self) -> str:
        default = self.adapter.dump_python(self.info.default, mode="json")
        text = ",".join(map(str, default)) if isinstance(default, list) else default
        return (
            f"the default is {one_line(str(text))}"
            if text not in (None, "", {})
            else "leave it out, or see docs/cli.md"
        )


def leaves(model: type[BaseModel], above: str = "") -> dict[str, Setting]:
    """Return every setting of a config by its dotted path.

    >>> from kdcli.config import EvalConfig
    >>> list(leaves(EvalConfig))[:3]
    ['model', 'teacher', 'teacher_cache']
    """
    found: dict[str, Setting] = {}
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            found |= leaves(info.annotation, f"{above}{name}.")
        else:
            found[above + name] = Setting(above + name, info)
    return found


def describe(schema: dict[str, Any]) -> str:
    """Say what a value must be.

    Args:
        schema: its JSON schema.

    >>> describe({"type": "integer", "minimum": 1})
    'a whole number >= 1'
    """
    if "enum" in schema:
        return f"one of {', '.join(map(str, schema['enum']))}"
    kind = schema.get("type", "text")
    if kind == "array":
        inner = schema.get("prefixItems")
        return f"{len(inner)} of: {describe(inner[0])}" if inner else f"a list of: {describe(schema['items'])}"
    words = {
        "integer": "a whole number",
        "number": "a number",
        "boolean": "true or false",
        "object": "name=column pairs",
    }
    return words.get(kind, "text") + _bounds(schema)


def _bounds(schema: dict[str, Any]) -> str:
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    parts = [f"{sign} {_round(schema[key])}" for key, sign in signs.items() if key in schema]
    return f" {' and '.join(parts)}" if parts else ""


def _round(bound: int | float) -> str:
    return "2**63" if bound == 2**63 else f"{bound:g}"


def _code_and_fix(kind: str, schema: dict[str, Any], value: Any, family: str) -> tuple[str, str | None]:
    """Return the error's code and, where it is clear, what to write instead."""
    schema = schema.get("items", (schema.get("prefixItems") or [schema])[0])
    from_flag, number = family == "CLI", schema.get("type") in ("integer", "number")
    if kind == "finite_number":
        return ("CLI-04" if from_flag else "CFG-08"), None
    if isinstance(value, str) and number:
        if not from_flag and isinstance(scalar(value), int | float):
            return "CFG-07", "remove the quotes"
        if "," in value and isinstance(scalar(value.replace(",", ".")), float):
            return ("CLI-05" if from_flag else "CFG-07"), f"use a point: {value.replace(',', '.')}"
    if "enum" in schema and (near := nearest(str(value), {name: name for name in schema["enum"]})):
        return ("CLI-06" if from_flag else "CFG-11"), f"did you mean {near}?"
    if from_flag:
        return {"integer": "CLI-07", "number": "CLI-05"}.get(schema.get("type", ""), "CLI-06"), None
    return ("CFG-09" if kind.startswith(("greater", "less", "int_parsing_size")) else "CFG-11"), None


def _inside(value: Any, step: int | str) -> Any:
    try:
        return value[step]
    except (KeyError, IndexError, TypeError):
        return value


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return f'text "{one_line(value, 60)}"'
    return one_line(json.dumps(value) if isinstance(value, bool | dict | list | None) else str(value), 60)
