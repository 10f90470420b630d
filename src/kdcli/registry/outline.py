"""Options of built-in losses and sources, read from their source text, so that checking them does not import torch."""

import ast
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pydantic
from pydantic import SkipValidation, create_model, field_validator

from kdcli.errors import UsageError
from kdcli.registry.build import build_term, nested_spec
from kdcli.registry.options import Plugin, nested_kind
from kdcli.registry.registry import LOSSES, SOURCES, Registry
from kdcli.registry.spec import ObjectiveSpec, Term, parse_objective


class _Part(Plugin):
    """Stands for a loss or a source inside another; what it holds is checked apart."""


class _Loss(_Part):
    part: ClassVar[str] = "loss"


class _Source(_Part):
    part: ClassVar[str] = "source"


_NESTED: dict[str, Any] = {
    "NestedLoss": Annotated[_Loss, SkipValidation],
    "NestedSource": Annotated[_Source, SkipValidation],
}
_PLAIN: dict[str, Any] = {
    **{kind.__name__: kind for kind in (float, int, bool, str, tuple, dict, list)},
    **{name: getattr(pydantic, name) for name in ("Field", "BeforeValidator", "AfterValidator", "PlainSerializer")},
    "Annotated": Annotated,
    "Literal": Literal,
}
_BASES = ("kdcli.losses.base:DistillLoss", "kdcli.sources.base:Source")
_WORDS = ("name", "part", "formula", "reference", "cost", "summary")


class _UnknownError(Exception):
    """A name that stands for code which is not read."""


class _Names(dict[str, Any]):
    """What the names in a module's annotations stand for, as far as that can be known without running it."""

    def __init__(self, module: str) -> None:
        super().__init__(_PLAIN | _NESTED)
        self.module = module

    def __missing__(self, name: str) -> Any:
        for statement in _tree(self.module).body:
            if isinstance(statement, ast.FunctionDef) and statement.name == name:
                return _unchanged
            if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
                targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
                if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                    return self.value(statement.value)
            if isinstance(statement, ast.ImportFrom) and (statement.module or "").startswith("kdcli."):
                for alias in statement.names:
                    if (alias.asname or alias.name) == name:
                        return _Names(str(statement.module))[alias.name]
        raise _UnknownError(name)

    def value(self, expression: ast.expr) -> Any:
        """Return what an expression of an annotation stands for.

        Raises:
            _UnknownError: it needs code that is not read.
        """
        return eval(compile(ast.Expression(expression), self.module, "eval"), {"__builtins__": {}}, self)


def _unchanged(value: Any) -> Any:
    """Stand for a function of a module that is not run: it lets every value pass."""
    return value


@cache
def _tree(module: str) -> ast.Module:
    spec = importlib.util.find_spec(module)
    assert spec is not None, f"{module} is shipped with the package"
    assert spec.origin is not None, f"{module} is a source file"
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))


def _lineage(module: str, name: str) -> Iterator[tuple[str, ast.ClassDef]]:
    """Yield a class and those it derives from, as far as they have options, the most basic first."""
    if f"{module}:{name}" in _BASES:
        return
    for statement in _tree(module).body:
        if isinstance(statement, ast.ImportFrom) and (statement.module or "").startswith("kdcli."):
            for alias in statement.names:
                if (alias.asname or alias.name) == name:
                    yield from _lineage(str(statement.module), alias.name)
        if isinstance(statement, ast.ClassDef) and statement.name == name:
            for base in statement.bases:
                if isinstance(base, ast.Name):
                    yield from _lineage(module, base.id)
            yield module, statement


@cache
def outline(target: str, part: str) -> type[Plugin]:
    """Return a class with the options of a built-in part, their types, bounds and defaults, and nothing that it does.

    Args:
        target: "module:Class".
        part: "loss" or "source".

    >>> outline(LOSSES.table["jsd"], "loss").model_fields["beta"].default
    0.5
    """
    module, _, name = target.partition(":")
    fields: dict[str, Any] = {}
    checks: dict[str, Any] = {}
    words: dict[str, Any] = {"part": part}
    doc = ""
    for home, node in _lineage(module, name):
        names, doc = _Names(home), ast.get_docstring(node) or ""
        for item in node.body:
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                if ast.unparse(item.annotation).startswith("ClassVar"):
                    if item.target.id in _WORDS and isinstance(item.value, ast.Constant):
                        words[item.target.id] = item.value.value
                    continue
                fields[item.target.id] = _field(names, item)
            if isinstance(item, ast.FunctionDef) and any("field_v" in ast.unparse(one) for one in item.decorator_list):
                checks[item.name] = _validator(item)
    made = create_model(name, __base__=Plugin, __doc__=doc, __validators__=checks, **fields)
    for key, value in words.items():
        setattr(made, key, value)
    return made


def _field(names: _Names, item: ast.AnnAssign) -> tuple[Any, Any]:
    try:
        kind = names.value(item.annotation)
    except _UnknownError:
        kind = Any
    try:
        return kind, ... if item.value is None else names.value(item.value)
    except _UnknownError:
        return kind, None


def _validator(item: ast.FunctionDef) -> Any:
    """Return a check of an option as its class has it; one that needs more than plain Python lets everything pass."""
    (decorator,) = (one for one in item.decorator_list if isinstance(one, ast.Call))
    plain = ast.FunctionDef(item.name, item.args, item.body, [], None, None, lineno=0, col_offset=0)
    for argument in plain.args.args:
        argument.annotation = None
    space: dict[str, Any] = {}
    exec(compile(ast.fix_missing_locations(ast.Module([plain], [])), "validator", "exec"), space)

    def check(cls: Any, value: Any) -> Any:
        try:
            return space[item.name](cls, value)
        except NameError:
            return value

    fields = [word.value for word in decorator.args if isinstance(word, ast.Constant)]
    mode = next((word.value.value for word in decorator.keywords if isinstance(word.value, ast.Constant)), "after")
    return field_validator(*fields, mode=mode)(classmethod(check))  # pyright: ignore[reportCallIssue,reportArgumentType]


def check_objective(spec: str | ObjectiveSpec) -> None:
    """Check names, options and bounds of an objective and its source without importing either.

    What a part checks across its options, and guests, are left to the building of the objective.

    Args:
        spec: as typed, or parsed.

    Raises:
        UsageError: an unknown name or option, or a value out of bounds; in the words of the building.

    >>> check_objective("0.5*ce+0.5*akl:mu=0.6")
    """
    parsed = parse_objective(spec) if isinstance(spec, str) else spec
    for term in parsed.terms:
        _check(LOSSES, "loss", term)
    if parsed.source is not None:
        _check(SOURCES, "source", parsed.source)


def _check(registry: Registry, part: str, term: Term) -> None:
    target = registry.table.get(registry.canonical(term.name))
    if target is None:
        return
    kind = outline(target, part)
    try:
        made = build_term(kind, term)
    except _UnknownError:
        return
    for name, field in kind.model_fields.items():
        inner, value = nested_kind(field), getattr(made, name)
        if inner is None or not isinstance(value, str):
            continue
        spec = nested_spec(value)
        for one in spec.terms:
            _check(LOSSES if inner.part == "loss" else SOURCES, inner.part, one)


def options_of(registry: Registry, name: str) -> tuple[str, ...]:
    """Return the names of a built-in's options; none for a guest, or a name that is unknown.

    >>> options_of(LOSSES, "akl")[0]
    'temperature'
    """
    try:
        target = registry.table.get(registry.canonical(name))
    except UsageError:
        return ()
    return tuple(outline(target, registry.kind).model_fields) if target is not None else ()
