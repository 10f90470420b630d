"""Resolves settings: flag > --set > KD_* variable > file > default.

A protocol stands just below the place that names it: ``--protocol minillm`` wins over a file, any other
flag or ``--set`` wins over the protocol.

Every value is checked where it was given, so that a mistake is named by its flag, its variable or
its line of the file. Texts (flags, ``--set``, variables) are read by the type of their setting; a
file's values must have that type already.
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from kdcli.config import yaml_file
from kdcli.config.names import ALIASES, EARLIER, nearest
from kdcli.config.presets import PROTOCOL, of_protocol, read_protocol
from kdcli.config.schema import KINDS, CommandConfig
from kdcli.config.sections import Flag, FromText
from kdcli.config.yaml_file import Node, scalar
from kdcli.errors import InputError, KDError, UsageError
from kdcli.text import one_line

# One setting's type: reads it from text or from a file's value, and says in words what it takes.


Fault = Callable[[str, str, str], Exception]
"""Makes the error of the place a value was given in, from code, what and fix."""

_ANNOTATED: Any = Annotated

MOST = 10**12
"""The greatest whole number that is read where a setting has no bound of its own."""


_LONGEST_RANGE = 1000


@dataclass(frozen=True)
class Setting:
    """A leaf of a config.

    Args:
        path: dotted name, such as ``train.lr``.
        info: the field behind it.
        names: flags in snake case that mean this setting here.
    """

    path: str
    info: FieldInfo
    names: tuple[str, ...] = ()

    @property
    def flags(self) -> tuple[Flag, ...]:
        """The flags that its field declares, of any command."""
        return flags_of(self.info)

    @property
    def reading(self) -> FromText:
        """How it is read from text."""
        return next((one for one in self.info.metadata if isinstance(one, FromText)), FromText())

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
        """Read a flag's, ``--set``'s or variable's text; lists are split at commas, ranges as 0-2 written out.

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
        separator = None if self.reading.spaced else ","
        pieces = [piece.strip() for piece in text.strip("[]").split(separator) if piece.strip()]
        whole = self.schema.get("items", {}).get("type") == "integer"
        return [number for piece in pieces for number in _range(piece)] if whole else pieces

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


def flags_of(info: FieldInfo) -> tuple[Flag, ...]:
    """Return the flags that a field declares."""
    extra: Any = info.json_schema_extra
    return extra.get("flags", ()) if isinstance(extra, dict) else ()


def iter_settings(model: type[BaseModel]) -> dict[str, Setting]:
    """Return every setting of a config by its dotted path.

    >>> from kdcli.config.schema import EvalConfig
    >>> list(iter_settings(EvalConfig))[:3]
    ['model', 'teacher', 'teacher_cache']
    """
    fields = dict(_leaves(model, ""))
    command = getattr(model, "command", "")
    claims = [(flag, path) for path, info in fields.items() for flag in flags_of(info)]
    # A flag of another command gives a name, too, unless one of this command has it: --data is data.eval in kd eval.
    meant = {flag.name: path for flag, path in sorted(claims, key=lambda claim: claim[0].of(command))}
    return {
        path: Setting(path, info, tuple(name for name, one in meant.items() if one == path))
        for path, info in fields.items()
    }


def _leaves(model: type[BaseModel], above: str) -> Iterator[tuple[str, FieldInfo]]:
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from _leaves(info.annotation, f"{above}{name}.")
        else:
            yield above + name, info


def flag_paths(settings: Mapping[str, Setting]) -> dict[str, str]:
    """Return the setting that each flag in snake case stands for, given the settings of a command.

    >>> from kdcli.config.schema import DistillConfig, EvalConfig
    >>> flag_paths(iter_settings(DistillConfig))["data"], flag_paths(iter_settings(EvalConfig))["data"]
    ('data.train', 'data.eval')
    """
    return {name: path for path, setting in settings.items() for name in setting.names}


@cache
def all_flags() -> tuple[str, ...]:
    """Return the flags of all commands that stand for a setting, in snake case."""
    return tuple(dict.fromkeys(name for kind in KINDS for name in flag_paths(iter_settings(kind))))


def setting_names(settings: Mapping[str, Setting]) -> dict[str, str]:
    """Return every spelling of the settings given: their paths, flags and other tools' names."""
    names = {path: path for path in settings} | flag_paths(settings)
    return names | {alias: names[flag] for alias, flag in ALIASES.items() if flag in names}


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


def _range(piece: str) -> list[str]:
    """Return the whole numbers of a range, both ends included; the text itself where it is none.

    >>> _range("0-2"), _range("7"), _range("2-0")
    (['0', '1', '2'], ['7'], ['2-0'])
    """
    low, dash, high = piece.partition("-")
    if not (dash and all(end.isdecimal() and end.isascii() and len(end) < 13 for end in (low, high))):
        return [piece]
    found = range(int(low), int(high) + 1)
    return [str(number) for number in found] if 0 < len(found) <= _LONGEST_RANGE else [piece]


def _inside(value: Any, step: int | str) -> Any:
    try:
        return value[step]
    except (KeyError, IndexError, TypeError):
        return value


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return f'text "{one_line(value, 60)}"'
    return one_line(json.dumps(value) if isinstance(value, bool | dict | list | None) else str(value), 60)


Config = TypeVar("Config", bound=CommandConfig)
Text = str | Sequence[str]

_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")


@dataclass(frozen=True)
class _Source:
    """Where a value was given; a config file's mistakes are bad input, all others bad usage."""

    where: str
    file: bool = False

    def fault(self, code: str, what: str, fix: str) -> KDError:
        return (InputError if self.file else UsageError)(code, what, where=self.where, fix=fix)


def resolve(
    kind: type[Config],
    *,
    file: Path | None = None,
    sets: Sequence[str] = (),
    flags: Mapping[str, Text] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Config:
    """Merge every place a setting can come from.

    Args:
        kind: the config to fill.
        file: a YAML file of settings.
        sets: ``dotted.path=value`` texts.
        flags: flag in snake case, without dashes -> text as typed.
        environ: environment; variables named ``KD_`` and a flag are read.

    Returns:
        the config, every value checked.

    Raises:
        UsageError: a flag, ``--set`` or variable that cannot be used.
        InputError: a file that cannot be used.

    >>> from kdcli.config.schema import DistillConfig
    >>> resolve(DistillConfig, sets=["train.lr=1e-4"], environ={"KD_LR": "1", "KD_EPOCHS": "2"}).train.lr
    0.0001
    """
    settings = iter_settings(kind)
    values: dict[str, Any] = {}
    for path, raw, source in _given(settings, file, sets, flags or {}, environ or {}):
        read = settings[path].from_file if source.file else settings[path].from_text
        value = read(raw, source.fault)
        values[path] = _expand(value, source) if settings[path].reading.path and value is not None else value
    return _built(kind, _nested(values))


def revalidated(config: Config, changes: Mapping[str, Any]) -> Config:
    """Return a config with some values replaced, checked again.

    Args:
        config: what to start from.
        changes: field at the top level -> new value.
    """
    return _built(type(config), config.model_copy(update=dict(changes)).model_dump())


def to_yaml(config: CommandConfig) -> str:
    """Write a config in the form that ``-c`` reads.

    >>> from kdcli.config.schema import DistillConfig
    >>> to_yaml(DistillConfig(loss="akl")).splitlines()[3]
    'loss: akl'
    """
    return yaml_file.to_yaml(config.model_dump(mode="json"))


def _given(
    settings: Mapping[str, Setting],
    file: Path | None,
    sets: Sequence[str],
    flags: Mapping[str, Text],
    environ: Mapping[str, str],
) -> Iterator[tuple[str, Any, _Source]]:
    """Yield path, raw value and source, the weakest source first."""
    for place in (
        _in_file(file, settings),
        _in_variables(environ, settings),
        _on_the_command_line(sets, flags, settings),
    ):
        given = list(place)
        named = [raw for path, raw, _ in given if path == PROTOCOL and isinstance(raw, str)]
        if named:
            yield from preset(named[-1], settings)
        yield from given


def preset(protocol: str, settings: Mapping[str, Setting]) -> Iterator[tuple[str, Any, _Source]]:
    """Yield what a protocol sets: path, raw value and source.

    Args:
        protocol: a name, or the path of a YAML file.
        settings: every setting of the command.

    Raises:
        UsageError: an unknown name.
        InputError: a file that cannot be read, or that sets what is no part of a protocol.
    """
    name, nodes = read_protocol(protocol)
    for path, raw, source in _walk(nodes, "", settings, name):
        if not of_protocol([path]):
            fix = "leave it out; a protocol sets data.template, the lengths and evaluation.*"
            raise source.fault("CFG-17", f"{path} is no part of a protocol", fix)
        yield path, raw, source


def _in_file(file: Path | None, settings: Mapping[str, Setting]) -> Iterator[tuple[str, Any, _Source]]:
    if file is not None:
        yield from _walk(yaml_file.read_config(file), "", settings, one_line(str(file)))


def _in_variables(environ: Mapping[str, str], settings: Mapping[str, Setting]) -> Iterator[tuple[str, Any, _Source]]:
    for name, text in environ.items():
        if path := _variable_path(name, settings):
            yield path, text, _Source(f"variable {name}")


def _walk(
    section: Mapping[str, Node], above: str, settings: Mapping[str, Setting], name: str
) -> Iterator[tuple[str, Any, _Source]]:
    for key, node in section.items():
        path, source = EARLIER.get(above + key, above + key), _Source(f"{name} line {node.line}", file=True)
        if path in settings:
            yield path, node.plain(), source
        elif not _below(path, settings):
            raise _unknown(path, settings, source.fault, "CFG-06")
        elif isinstance(node.value, dict | None):
            yield from _walk(node.value or {}, path + ".", settings, name)
        else:
            raise source.fault("CFG-11", f"{path} is a section, got a value", "write its settings below it, indented")


def _on_the_command_line(
    sets: Sequence[str], flags: Mapping[str, Text], settings: Mapping[str, Setting]
) -> Iterator[tuple[str, Any, _Source]]:
    for text in sets:
        yield _split_set(text, settings)
    paths = flag_paths(settings)
    for flag, value in flags.items():
        yield paths[flag], value, _Source("--" + flag.replace("_", "-"))


def _variable_path(name: str, settings: Mapping[str, Setting]) -> str | None:
    """Return the setting that an environment variable holds, None if it holds none of this command's."""
    flag = name[3:].lower()
    if not name.startswith("KD_") or flag == "debug":
        return None
    if flag in all_flags():
        return flag_paths(settings).get(flag)
    if similar := nearest(flag, {known: known for known in all_flags()}, cutoff=0.8):
        fix = f"did you mean KD_{similar.upper()}?"
        raise UsageError("CLI-19", "no such setting", where=f"variable {one_line(name)}", fix=fix)
    return None


def _split_set(text: str, settings: Mapping[str, Setting]) -> tuple[str, str, _Source]:
    path, equals, value = text.partition("=")
    path, source = path.strip().replace("-", "_"), _Source(f"--set {one_line(text, 60)}")
    path = EARLIER.get(path, path)
    if not equals:
        raise source.fault("CLI-19", "expected key=value", "write --set train.lr=1e-4")
    if path not in settings:
        raise _unknown(path, settings, source.fault, "CLI-19")
    return path, value.strip(), source


def _below(section: str, settings: Mapping[str, Setting]) -> list[str]:
    return [path for path in settings if path.startswith(section + ".")]


def _unknown(path: str, settings: Mapping[str, Setting], fault: Any, code: str) -> KDError:
    if below := _below(path, settings):
        return fault(code, f"{path} is a section", f"name one of its settings, such as {below[0]}")
    similar = nearest(path, setting_names(settings))
    fix = f"did you mean {similar}?" if similar else "docs/cli.md lists every setting"
    return fault(code, f"{one_line(path)} is not a setting", fix)


def _expand(text: str, source: _Source) -> str:
    """Replace ``~`` and ``$NAME`` in a path."""
    if not text.strip():
        raise source.fault("CLI-10", "the path is empty", "give a path")

    def value(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        if name not in os.environ:
            raise source.fault("CFG-16", f"variable {name} is not set", f"export {name}=..., or write the path out")
        return os.environ[name]

    full = os.path.expanduser(_VARIABLE.sub(value, text))
    if "\0" in full:
        raise source.fault("CLI-10", "a path holds a NUL character", "give another path")
    if full.startswith("~"):
        user = full[1:].partition("/")[0]
        raise source.fault("CLI-10", f'no user "{one_line(user, 60)}" here', f"write the path out, or ./{full}")
    return full


def expanded(text: str, where: str) -> str:
    """Return a path that is no setting, with ``~`` and ``$NAME`` replaced as in those that are.

    Args:
        text: as typed.
        where: the flag.

    Raises:
        UsageError: it is empty, or names a user or variable that does not exist.
    """
    return _expand(text, _Source(where))


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in values.items():
        *sections, last = path.split(".")
        branch = tree
        for section in sections:
            branch = branch.setdefault(section, {})
        branch[last] = value
    return tree


def _built(kind: type[Config], values: Mapping[str, Any]) -> Config:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        reason = one_line(str(first.get("ctx", {}).get("error", first["msg"])))
        raise UsageError("CLI-08", reason, fix="give each value once") from None
