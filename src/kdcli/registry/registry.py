"""Finds a class by name: built-in table, entry points, or the path of a plug-in."""

import contextlib
import difflib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from kdcli.errors import InputError, UsageError
from kdcli.registry import catalog, plugins
from kdcli.text import one_line, typed

_GUEST_FILE = "kd_guest_"
"""First part of the module name given to a guest's file."""


@dataclass(frozen=True)
class Registry:
    """Names of one kind of part, resolved on first use.

    Args:
        kind: the word used in messages, "loss" or "metric".
        group: entry-point group in which guests declare ``name = module:Class``.
        base: "module:Class" that every entry must derive from.
        table: the built-in names.
        aliases: other spellings users type.
        earlier: names of earlier versions, which stay valid and are not listed.
    """

    kind: str
    group: str
    base: str
    table: Mapping[str, str]
    aliases: Mapping[str, str]
    earlier: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def guests(self) -> dict[str, str]:
        """Entry points of installed packages, name -> "module:Class"; nothing is imported."""
        found: dict[str, str] = {}
        for point in importlib.metadata.entry_points(group=self.group):
            owner = found.get(point.name) or self.table.get(point.name)
            if owner and owner != point.value:
                raise InputError(
                    "PLUG-03",
                    f'"{point.name}" is offered by {owner} and by {point.value}',
                    where=f"entry points {self.group}",
                    fix="rename one of them, or give its path as module:Class",
                )
            found[point.name] = point.value
        return found

    def names(self) -> list[str]:
        """Every name, built-in ones first."""
        return [*self.table, *(name for name in self.guests if name not in self.table)]

    def canonical(self, name: str) -> str:
        """Return the registered name for what a user typed, or a guest's path unchanged.

        Raises:
            UsageError: no such name; offers the nearest.

        >>> LOSSES.canonical("forward_kl")
        'fkl'
        """
        if ":" in name:
            return self._guest_path(name)
        if name in self.table or name in self.guests:
            return name
        if name in self.earlier:
            return self.earlier[name]
        folded = name.lower().replace("-", "_")
        known = {key.lower(): key for key in self.names()} | dict(self.aliases)
        if folded in known:
            target = known[folded]
            if folded in self.aliases or self.kind == "loss":
                return target
        near = difflib.get_close_matches(folded, known, n=3, cutoff=0.5)
        nearest = list(dict.fromkeys(known[key] for key in near))
        hint = f"did you mean {' or '.join(nearest)}? " if nearest else ""
        raise UsageError(
            f"{self.kind.upper()}-01",
            f'unknown {self.kind} "{one_line(name)}"',
            fix=f"{hint}list: kd {self._plural} list" if not name.endswith(".py") else f"name the class: {name}:Class",
        )

    @property
    def _plural(self) -> str:
        return "losses" if self.kind == "loss" else f"{self.kind}s"

    def _guest_path(self, name: str) -> str:
        """Return ``module:Class``, unless the module is a registered name: then an option was meant."""
        head, _, tail = name.partition(":")
        if head in self.table or head in self.aliases or head in self.guests:
            raise UsageError(
                "SPEC-01",
                f'"{one_line(tail)}" after {head} is not key=value',
                where=f'{self.kind} "{one_line(name)}"',
                fix=f"write {head}:key=value; a plug-in in a file {head}.py is ./{head}.py:Class",
            )
        return name

    def name_of(self, found: type) -> str:
        """Return the name that :meth:`resolve` turns back into this class.

        >>> LOSSES.name_of(LOSSES.resolve("forward_kl"))
        'fkl'
        """
        path = f"{found.__module__}:{found.__qualname__}"
        for names in (self.table, self.guests):
            for name, target in names.items():
                if target == path:
                    return name
        if found.__module__.startswith(_GUEST_FILE):
            return f"{sys.modules[found.__module__].__file__}:{found.__qualname__}"
        return path

    def resolve(self, name: str) -> type[Any]:
        """Import and return the class behind a name.

        Raises:
            UsageError: unknown name, or the code of a guest that the command line does not name.
            InputError: a guest that cannot be imported or is of another kind.
        """
        name = self.canonical(name)
        target = self.table.get(name) or self.guests.get(name) or name
        module_name, _, class_name = target.partition(":")
        guest, part = not self._is_ours(module_name), f'{self.kind} "{one_line(name, 200)}"'
        if guest and target == name:
            plugins.check(name, part)
        module = _import(module_name)
        if guest:
            plugins.imported(part, module)
        found = getattr(module, class_name, None)
        base_module, _, base_name = self.base.partition(":")
        base = getattr(importlib.import_module(base_module), base_name)
        if not (isinstance(found, type) and issubclass(found, base)):
            raise InputError(
                "PLUG-01", self._not_one(found, class_name, module, base), where=target, fix=self._offer(module, base)
            )
        return found

    def _is_ours(self, module: str) -> bool:
        """Whether a module belongs to this package's own parts of the kind."""
        return module.startswith(self.base.partition(":")[0].rpartition(".")[0] + ".")

    def code_digest(self, found: type) -> str:
        """Return the sha256 of the file that a guest's class stands in; empty for a part of this package.

        >>> LOSSES.code_digest(LOSSES.resolve("fkl"))
        ''
        """
        path = None if self._is_ours(found.__module__) else getattr(sys.modules[found.__module__], "__file__", None)
        return "" if path is None else hashlib.sha256(Path(path).read_bytes()).hexdigest()

    def may_resolve(self, name: str) -> bool:
        """Whether :meth:`resolve` would run nothing but code that the user named or installed."""
        return name in self.table or name in self.guests or (":" in name and plugins.may_run(name))

    def _not_one(self, found: object, class_name: str, module: Any, base: type) -> str:
        if found is None:
            return f'{module.__name__} has no {self.kind} "{class_name}"'
        return f"{class_name} is not a {self.kind}: it must derive from {base.__module__}.{base.__name__}"

    def _offer(self, module: Any, base: type) -> str:
        offered = [
            key
            for key, value in vars(module).items()
            if isinstance(value, type) and issubclass(value, base) and value.__module__ == module.__name__
        ]
        return f"it offers {', '.join(offered)}" if offered else f"define a class deriving from {base.__name__} there"


def _import(name: str) -> Any:
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return _import_file(Path(name)) if name.endswith(".py") else importlib.import_module(name)
    except Exception as error:
        if isinstance(error, InputError):
            raise
        first = str(error).splitlines()[0] if str(error) else ""
        raise InputError(
            "PLUG-02", f"failed to import: {type(error).__name__}: {one_line(first)}", where=name, fix=_import_fix(name)
        ) from error
    except SystemExit as error:
        raise InputError(
            "PLUG-08", "the plug-in called sys.exit while being imported", where=name, fix="remove that call"
        ) from error


def _import_fix(name: str) -> str:
    if Path(f"{name}.py").is_file():
        return f"for the file in this folder write ./{name}.py:Class"
    if name.endswith(".py"):
        return f"make `python {typed(name)}` work first"
    return f"make `python -c {typed(f'import {name}')}` work first"


def _import_file(path: Path) -> Any:
    if not path.is_file():
        raise InputError(
            "PLUG-02", f"no such file (looked in {Path.cwd()})", where=str(path), fix="give the path of a .py file"
        )
    name = f"{_GUEST_FILE}{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError("PLUG-02", "cannot be loaded as Python", where=str(path), fix="give the path of a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


LOSSES = Registry("loss", "kd.losses", "kdcli.losses.base:DistillLoss", catalog.LOSSES, catalog.LOSS_ALIASES)
SOURCES = Registry("source", "kd.sources", "kdcli.sources.base:Source", catalog.SOURCES, {})
METRICS = Registry(
    "metric", "kd.metrics", "kdcli.metrics.base:Metric", catalog.METRICS, catalog.METRIC_ALIASES, catalog.EARLIER_NAMES
)
SCORES = Registry("score", "kd.scores", "kdcli.scores.base:Score", catalog.SCORES, {})
