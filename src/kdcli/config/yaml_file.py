"""Reads and writes config files: the plain part of YAML, every value with its line.

Left out on purpose: anchors and aliases (they blow up), tags (they construct objects), more than
one document, repeated keys. Words such as ``no`` and ``on`` are text; ``1e-4`` is a number.
"""

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kdcli.errors import InputError, MachineError
from kdcli.text import one_line

LARGEST = 2**20
DEEPEST = 20

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_WHOLE = re.compile(r"[-+]?\d{1,400}$")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")
_SPECIAL = re.compile(r"([-+]?)\.?(inf|nan)$", re.IGNORECASE)
_WORDS = {"null": None, "~": None, "": None, "true": True, "false": False}


@dataclass(frozen=True)
class Node:
    """A value of the file and the line it stands on.

    Args:
        value: text, number, true, false, None, a list of nodes, or a dict of text to node.
        line: line in the file, from 1.
    """

    value: Any
    line: int

    def plain(self) -> Any:
        """Return the value without its lines."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value


def read_config(path: Path) -> dict[str, Node]:
    """Read a config file.

    Args:
        path: a YAML file of at most 1 MiB.

    Returns:
        its top level, key -> node.

    Raises:
        InputError: not a file of this form; names line and column.
        MachineError: the file may not be read.
    """
    name = one_line(str(path))
    events = _events(_text(path, name), name)
    try:
        root = _node(next(events, None), events, name)
    except StopIteration:
        raise InputError("CFG-03", "the file ends too early", where=name, fix="complete it") from None
    if root.value is None:
        return {}
    if not isinstance(root.value, dict):
        raise InputError("CFG-03", "settings are needed, as key: value", where=_at(name, root), fix="write lr: 1e-4")
    if next(events, None) is not None:
        raise InputError("CFG-03", "a second document begins after ---", where=name, fix="keep one")
    return root.value


def scalar(text: str) -> Any:
    """Return what an unquoted word of the file means.

    >>> scalar("1e-4"), scalar("no"), scalar("012"), scalar("true"), scalar("1:30")
    (0.0001, 'no', 12, True, '1:30')
    """
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if _WHOLE.match(text):
        return int(text)
    if _NUMBER.match(text):
        return float(text)
    special = _SPECIAL.match(text)
    return float(special[1] + special[2]) if special else text


def to_yaml(values: dict[str, Any]) -> str:
    r"""Write nested values in the form that :func:`read_config` reads back unchanged.

    >>> to_yaml({"loss": "1e-4", "train": {"lr": 0.0001, "max_steps": None}})
    'loss: "1e-4"\ntrain:\n  lr: 0.0001\n  max_steps: null\n'
    """
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)


class _Dumper(yaml.SafeDumper):
    """Quotes text that our reader would take for something else; uses no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text_node(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = None if scalar(text) == text and text.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text_node)


def _text(path: Path, name: str) -> str:
    try:
        info = os.stat(path)
        if not stat.S_ISREG(info.st_mode):
            raise InputError("CFG-02", "not a regular file", where=name, fix="give a YAML file")
        if info.st_size > LARGEST:
            raise InputError("CFG-05", "larger than 1 MiB", where=name, fix="a config holds settings, not data")
        raw = path.read_bytes()
    except FileNotFoundError:
        what = f"not found; looked in {one_line(str(Path.cwd()))}"
        raise InputError(
            "CFG-01", what, where=name, fix="check the path; every run folder holds a config.yaml"
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise MachineError("CFG-02", f"cannot be read: {reason}", where=name, fix="check the path") from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        what = f"not UTF-8 (byte 0x{raw[error.start]:02x} at {error.start})"
        raise InputError("CFG-04", what, where=name, fix="save it as UTF-8") from None


def _events(text: str, name: str) -> Iterator[yaml.Event]:
    """Yield the file's events, without the frame of stream and document, refusing what we leave out."""
    depth = 0
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise _refuse("CFG-15", "nested too deeply", event, name, "settings are two levels deep")
            if isinstance(event, yaml.NodeEvent):
                _check_node(event, name)
                yield event
            elif isinstance(event, yaml.CollectionEndEvent):
                yield event
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name} line {mark.line + 1} column {mark.column + 1}" if mark else name
        if mark and _open_brackets(text[: mark.index]) > DEEPEST:
            # The parser reads ahead, and some versions have a bound of their own.
            what, fix = "nested too deeply", "settings are two levels deep"
            raise InputError("CFG-15", what, where=place, fix=fix) from None
        raise InputError("CFG-03", one_line(error.problem or "not YAML"), where=place, fix="write key: value") from None
    except yaml.YAMLError as error:
        raise InputError("CFG-03", one_line(str(error)), where=name, fix="save it as plain text") from None


def _open_brackets(text: str) -> int:
    """Return how many brackets and braces are open at the end of a text.

    >>> _open_brackets("a: [[{b: 1}, 2]")
    1
    """
    return sum((letter in "[{") - (letter in "]}") for letter in text)


def _check_node(event: yaml.NodeEvent, name: str) -> None:
    if isinstance(event, yaml.AliasEvent) or event.anchor:
        raise _refuse("CFG-10", "anchors and aliases are not read", event, name, "write the value out")
    tag = getattr(event, "tag", None)
    if tag not in (None, "!"):
        raise _refuse("CFG-03", f"tags such as {one_line(tag, 40)} are not read", event, name, "write the plain value")


def _refuse(code: str, what: str, event: yaml.Event, name: str, fix: str) -> InputError:
    mark = event.start_mark
    return InputError(code, what, where=f"{name} line {mark.line + 1} column {mark.column + 1}", fix=fix)


def _node(event: yaml.Event | None, events: Iterator[yaml.Event], name: str) -> Node:
    if event is None:
        return Node(None, 1)
    line = event.start_mark.line + 1
    if isinstance(event, yaml.SequenceStartEvent):
        items = []
        while not isinstance(item := next(events), yaml.SequenceEndEvent):
            items.append(_node(item, events, name))
        return Node(items, line)
    if isinstance(event, yaml.MappingStartEvent):
        return Node(_mapping(events, name), line)
    assert isinstance(event, yaml.ScalarEvent)
    return Node(scalar(event.value) if event.implicit[0] else event.value, line)


def _mapping(events: Iterator[yaml.Event], name: str) -> dict[str, Node]:
    values: dict[str, Node] = {}
    while not isinstance(key := next(events), yaml.MappingEndEvent):
        if not isinstance(key, yaml.ScalarEvent):
            raise _refuse("CFG-03", "a key must be a word", key, name, "write key: value")
        node = _node(next(events), events, name)
        if key.value in values:
            what = f"line {key.start_mark.line + 1} repeats line {values[key.value].line}"
            raise _refuse("CFG-10", f'{what}: "{one_line(key.value)}"', key, name, "keep one")
        values[key.value] = Node(node.value, key.start_mark.line + 1)
    return values


def _at(name: str, node: Node) -> str:
    return f"{name} line {node.line}"
