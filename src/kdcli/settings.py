"""Settles a run's settings: flag > --set > KD_* variable > file > default.

A protocol stands just below the place that names it: ``--protocol minillm`` wins over a file, any other
flag or ``--set`` wins over the protocol.

Every value is checked where it was given, so that a mistake is named by its flag, its variable or
its line of the file. Texts (flags, ``--set``, variables) are read by the type of their setting; a
file's values must have that type already.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from kdcli import config_file
from kdcli.config import (
    CacheConfig,
    CompareConfig,
    DistillConfig,
    DoctorConfig,
    EvalConfig,
    GenerateConfig,
    JudgeConfig,
)
from kdcli.config_file import Node
from kdcli.errors import InputError, KDError, UsageError
from kdcli.fields import Setting, leaves
from kdcli.presets import PROTOCOL, of_protocol, read_protocol
from kdcli.spelling import FLAGS, flag_path, nearest, setting_names
from kdcli.text import one_line

Config = TypeVar(
    "Config", DistillConfig, EvalConfig, CompareConfig, CacheConfig, GenerateConfig, JudgeConfig, DoctorConfig
)
Text = str | Sequence[str]

PATHS = {
    "teacher", "teacher_cache", "student", "model", "predictions", "answers", "scores", "prompt_file", "output",
    "local_teacher", "data.train", "data.eval", "data.dev",
}  # fmt: skip
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

    >>> resolve(DistillConfig, sets=["train.lr=1e-4"], environ={"KD_LR": "1", "KD_EPOCHS": "2"}).train.lr
    0.0001
    """
    settings = leaves(kind)
    values: dict[str, Any] = {}
    for path, raw, source in _given(settings, file, sets, flags or {}, environ or {}):
        read = settings[path].from_file if source.file else settings[path].from_text
        value = read(raw, source.fault)
        values[path] = _expand(value, source) if path in PATHS and value is not None else value
    return _built(kind, _nested(values))


def altered(config: Config, changes: Mapping[str, Any]) -> Config:
    """Return a config with some values replaced, checked again.

    Args:
        config: what to start from.
        changes: field at the top level -> new value.
    """
    return _built(type(config), config.model_copy(update=dict(changes)).model_dump())


def to_yaml(config: DistillConfig | EvalConfig | CompareConfig | CacheConfig | GenerateConfig | DoctorConfig) -> str:
    """Write a config in the form that ``-c`` reads.

    >>> to_yaml(DistillConfig(loss="akl")).splitlines()[3]
    'loss: akl'
    """
    return config_file.to_yaml(config.model_dump(mode="json"))


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
        yield from _walk(config_file.read_config(file), "", settings, one_line(str(file)))


def _in_variables(environ: Mapping[str, str], settings: Mapping[str, Setting]) -> Iterator[tuple[str, Any, _Source]]:
    for name, text in environ.items():
        if path := _variable_path(name, settings):
            yield path, text, _Source(f"variable {name}")


def _walk(
    section: Mapping[str, Node], above: str, settings: Mapping[str, Setting], name: str
) -> Iterator[tuple[str, Any, _Source]]:
    for key, node in section.items():
        path, source = above + key, _Source(f"{name} line {node.line}", file=True)
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
    for flag, value in flags.items():
        yield flag_path(flag, settings), value, _Source("--" + flag.replace("_", "-"))


def _variable_path(name: str, settings: Mapping[str, Setting]) -> str | None:
    """Return the setting that an environment variable holds, None if it holds none of this command's."""
    flag = name[3:].lower()
    if not name.startswith("KD_") or flag == "debug":
        return None
    if flag in FLAGS:
        path = flag_path(flag, settings)
        return path if path in settings else None
    if similar := nearest(flag, {known: known for known in FLAGS}, cutoff=0.8):
        fix = f"did you mean KD_{similar.upper()}?"
        raise UsageError("CLI-19", "no such setting", where=f"variable {one_line(name)}", fix=fix)
    return None


def _split_set(text: str, settings: Mapping[str, Setting]) -> tuple[str, str, _Source]:
    path, equals, value = text.partition("=")
    path, source = path.strip().replace("-", "_"), _Source(f"--set {one_line(text, 60)}")
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
