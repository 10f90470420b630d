"""Which keys of a conversation's turns, and which other variables, a chat template reads."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar, Literal

from jinja2 import Environment, TemplateError, meta, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser

_Kind = Literal["turns", "turn"]
_SAME = frozenset(
    {"list", "reverse", "sort", "selectattr", "rejectattr", "select", "reject", "unique", "batch", "slice"}
)
_ONE = frozenset({"first", "last", "random"})
_METHODS = frozenset({"get", "items", "keys", "values"})
_SAYS_NOTHING = frozenset({"length", "count"})


@dataclass(frozen=True)
class Reads:
    """What a template reads.

    Args:
        keys: keys of turns.
        every_key: whether it passes whole turns on, so that any key may be seen.
        variables: names that it takes from outside.
    """

    keys: frozenset[str]
    every_key: bool
    variables: frozenset[str]

    def reads(self, key: str) -> bool:
        """Tell whether a key of a turn can have an effect."""
        return self.every_key or key in self.keys


@lru_cache(maxsize=16)
def keys_read(template: str) -> Reads:
    """Return the keys and variables that a chat template reads, found in its syntax and not by running it.

    Args:
        template: in the language of Jinja2, with the tags that transformers adds.

    >>> found = keys_read("{% for m in messages %}{{ m.role + m['content'] }}{% endfor %}{{ tools }}")
    >>> sorted(found.keys), found.every_key, sorted(found.variables)
    (['content', 'role'], False, ['messages', 'tools'])
    """
    tree = Environment(extensions=["jinja2.ext.loopcontrols", _Generation]).parse(template)
    search = _Search()
    while True:
        before = search.state()
        search.look_at(tree)
        if search.state() == before:
            return Reads(frozenset(search.keys), search.every_key, frozenset(meta.find_undeclared_variables(tree)))


class _Generation(Extension):
    """The tag ``{% generation %}`` of transformers: what stands inside is put out as it is."""

    tags: ClassVar[set[str]] = {"generation"}

    def parse(self, parser: Parser) -> Sequence[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@dataclass
class _Search:
    """Follows the list of turns, and single turns, through variables, filters and macros."""

    kinds: dict[str, _Kind] = field(default_factory=lambda: {"messages": "turns"})
    macros: dict[str, nodes.Macro] = field(default_factory=dict)
    keys: set[str] = field(default_factory=set)
    every_key: bool = False

    def state(self) -> tuple[Any, ...]:
        return len(self.kinds), len(self.macros), len(self.keys), self.every_key

    def look_at(self, tree: nodes.Node) -> None:
        """Visit every node once; to be repeated until nothing new is found."""
        for node in _walk(tree):
            if isinstance(node, nodes.Macro):
                self.macros[node.name] = node
            elif isinstance(node, nodes.For):
                self._bind(node.target, self._inside(node.iter))
            elif isinstance(node, nodes.Assign):
                self._assign(node)
            elif isinstance(node, nodes.Compare):
                self._compare(node)
            elif isinstance(node, nodes.Output | nodes.Concat):
                self.every_key |= any(self.kind(one) is not None for one in node.nodes)
            elif isinstance(node, nodes.Getattr | nodes.Getitem | nodes.Filter | nodes.Call):
                self.kind(node)

    def kind(self, node: nodes.Node | None) -> _Kind | None:
        """Return whether an expression stands for the turns, or for one; keys that it takes are written down."""
        if isinstance(node, nodes.Name):
            return self.kinds.get(node.name)
        if isinstance(node, nodes.NSRef):
            return self.kinds.get(f"{node.name}.{node.attr}")
        if isinstance(node, nodes.Getattr):
            return self._attribute(node)
        if isinstance(node, nodes.Getitem):
            return self._item(node)
        if isinstance(node, nodes.Filter):
            return self._filter(node)
        if isinstance(node, nodes.Call):
            return self._call(node)
        if isinstance(node, nodes.CondExpr):
            return self.kind(node.expr1) or self.kind(node.expr2)
        if isinstance(node, nodes.Add | nodes.Or | nodes.And):
            return self.kind(node.left) or self.kind(node.right)
        if isinstance(node, nodes.List | nodes.Tuple):
            return "turns" if any(self.kind(one) is not None for one in node.items) else None
        return None

    def _bind(self, target: nodes.Node, kind: _Kind | None) -> None:
        if kind is not None and isinstance(target, nodes.Name):
            self.kinds[target.name] = kind
        if kind is not None and isinstance(target, nodes.NSRef):
            self.kinds[f"{target.name}.{target.attr}"] = kind

    def _assign(self, node: nodes.Assign) -> None:
        value = node.node
        self._bind(node.target, self.kind(value))
        if not isinstance(value, nodes.Call) or not isinstance(node.target, nodes.Name):
            return
        if isinstance(value.node, nodes.Name) and value.node.name == "namespace":
            for one in value.kwargs:
                self._bind(nodes.NSRef(node.target.name, one.key), self.kind(one.value))

    def _inside(self, node: nodes.Node) -> _Kind | None:
        """Return what a loop over an expression meets; a loop over one turn meets all its keys."""
        kind = self.kind(node)
        self.every_key |= kind == "turn"
        return "turn" if kind == "turns" else None

    def _attribute(self, node: nodes.Getattr) -> _Kind | None:
        if isinstance(node.node, nodes.Name):
            known = self.kinds.get(f"{node.node.name}.{node.attr}")
            if known is not None:
                return known
            if node.node.name == "loop" and node.attr in ("previtem", "nextitem"):
                return "turn"
        if self.kind(node.node) == "turn" and node.attr not in _METHODS:
            self.keys.add(node.attr)
        return None

    def _item(self, node: nodes.Getitem) -> _Kind | None:
        kind = self.kind(node.node)
        if kind == "turns":
            return "turns" if isinstance(node.arg, nodes.Slice) else "turn"
        if kind == "turn":
            self._key(node.arg)
        return None

    def _key(self, node: nodes.Node) -> None:
        if isinstance(node, nodes.Const) and isinstance(node.value, str):
            self.keys.add(node.value)
        else:
            self.every_key = True

    def _filter(self, node: nodes.Filter) -> _Kind | None:
        kind = self.kind(node.node)
        if kind is None:
            return None
        names = [*node.args, *(one.value for one in node.kwargs if one.key == "attribute")]
        if kind == "turns" and node.name in ("selectattr", "rejectattr", "map", "groupby", "sort") and names:
            self._key(names[0])
        if kind == "turns" and (node.name in _SAME or node.name in _ONE):
            return "turns" if node.name in _SAME else "turn"
        if node.name not in _SAYS_NOTHING and not (kind == "turns" and node.name in ("map", "groupby")):
            self.every_key = True
        return None

    def _call(self, node: nodes.Call) -> _Kind | None:
        if isinstance(node.node, nodes.Getattr) and self.kind(node.node.node) == "turn":
            if node.node.attr == "get" and node.args:
                self._key(node.args[0])
            else:
                self.every_key = True
            return None
        if not isinstance(node.node, nodes.Name):
            return None
        macro = self.macros.get(node.node.name)
        if macro is not None:
            given = dict(zip((one.name for one in macro.args), node.args, strict=False))
            given |= {one.key: one.value for one in node.kwargs}
            for name, value in given.items():
                self._bind(nodes.Name(name, "store"), self.kind(value))
            return None
        if node.node.name not in ("namespace", "raise_exception"):
            self.every_key |= any(self.kind(one) is not None for one in node.args)
        return None

    def _compare(self, node: nodes.Compare) -> None:
        for one in node.ops:
            if one.op in ("in", "notin") and self.kind(one.expr) == "turn":
                self._key(node.expr)


def _walk(node: nodes.Node) -> Iterator[nodes.Node]:
    yield node
    for child in node.iter_child_nodes():
        yield from _walk(child)


def try_keys_read(template: str) -> Reads | None:
    """Return what a template reads; None where its syntax is wrong, which its rendering will say."""
    try:
        return keys_read(template)
    except (TemplateError, RecursionError):
        return None
