"""Cards of metrics, read from their source text so that listing does not import ``evaluate``."""

import ast
import importlib.metadata
import importlib.util
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcli.errors import InputError
from kdcli.metrics.signature import TEACHER_FACTS, Option, signature
from kdcli.registry.registry import METRICS
from kdcli.text import one_line

_READ = ("name", "description", "scores", "settings", "options", "libraries", "facts", "samplers", "input_kind")


@dataclass(frozen=True)
class MetricCard:
    """What `kd metrics list` and `show` print about a metric.

    Args:
        name: the registered name.
        aliases: other spellings.
        eats: its input kind, under the name it has in JSON.
        scores: score name -> "higher", "lower" or "neither", whichever is better.
        settings: signature with default options, stored beside every result.
        options: constructor options and defaults.
        needs_teacher: whether it compares with a teacher.
        description: one line.
        doc: the whole documentation.
    """

    name: str
    aliases: tuple[str, ...]
    eats: str
    scores: Mapping[str, str]
    settings: str
    options: Mapping[str, Option]
    needs_teacher: bool
    description: str
    doc: str

    @property
    def input_kind(self) -> str:
        """What it is computed from: "texts", "tokens", "own" for sampled answers, or "choices"."""
        return self.eats

    @property
    def direction(self) -> str:
        """Directions in one word, or one per score where they differ."""
        kinds = set(self.scores.values())
        return kinds.pop() if len(kinds) == 1 else ", ".join(f"{name} {better}" for name, better in self.scores.items())


def describe(name: str) -> MetricCard:
    """Describe one metric; a built-in is read without being imported.

    Args:
        name: a registered name, an alias, or a guest's path.

    Raises:
        UsageError: no such metric.

    >>> describe("rouge").settings.split("|")[3:]
    ['rouge_tokenizer:words', 'rouge_stemmer:porter', 'refs:max', 'agg:mean', 'x100']
    """
    name = METRICS.canonical(name)
    target = METRICS.table.get(name)
    found = _read_class(target) if target else _read_guest(METRICS.resolve(name))
    if missing := [key for key in ("scores", "description") if key not in found]:
        fix = f"write {missing[0]} into the class, as kdcli.metrics.base.Metric says"
        raise InputError("PLUG-04", f"the class has no {missing[0]}", where=f'metric "{one_line(name, 200)}"', fix=fix)
    facts, samplers = found.get("facts", ()), found.get("samplers", ())
    options = found.get("options", {})
    return MetricCard(
        name=found.get("name", name),
        aliases=tuple(alias for alias, target_name in METRICS.aliases.items() if target_name == name),
        eats=found.get("input_kind", "own" if samplers else "tokens" if facts else "texts"),
        scores=found["scores"],
        settings=signature(found.get("name", name), found.get("settings", ""), options, found.get("libraries", ())),
        options=options,
        needs_teacher=not TEACHER_FACTS.isdisjoint(facts) or not {"student"}.issuperset(samplers),
        description=found["description"],
        doc=found["doc"],
    )


def cards() -> list[MetricCard]:
    """Describe every registered metric, built-in ones first."""
    return [describe(name) for name in METRICS.names()]


def _read_guest(found: type) -> dict[str, Any]:
    return {key: getattr(found, key) for key in _READ if hasattr(found, key)} | {
        "doc": inspect.cleandoc(found.__doc__ or "")
    }


def _read_class(target: str) -> dict[str, Any]:
    """Read the literal class attributes and the docstring of "module:Class" from its source file."""
    module, _, class_name = target.partition(":")
    spec = importlib.util.find_spec(module)
    assert spec is not None, f"{module} is shipped with the package"
    assert spec.origin is not None, f"{module} is a source file"
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    node = next(item for item in tree.body if isinstance(item, ast.ClassDef) and item.name == class_name)
    literals = {
        item.target.id: ast.literal_eval(item.value)
        for item in node.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and item.target.id in _READ
        if item.value is not None
    }
    return literals | {"doc": ast.get_docstring(node) or ""}
