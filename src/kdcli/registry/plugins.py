"""Which plug-in code a command may run: what the user's own line names, nothing that only a file names.

A run folder, a study or a settings file may come from elsewhere. Names such as ``./my_loss.py:Mine`` in them are
texts; the code behind one is run where the command line, a ``KD_`` variable or ``--plugin`` names it, too. Programs
that import ``kdcli`` name their code themselves, so that for them nothing is withheld.
"""

import re
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from kdcli.errors import InputError, KDError, UsageError
from kdcli.text import one_line, typed

_OURS = Path(__file__).resolve().parents[1]
_SEPARATORS = re.compile(r"[\s=(),+*@]+")
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")
_BEFORE, _AFTER = set("=(),+*@ "), set(":(),+@ ")


class _Named:
    """What one command line names.

    Args:
        texts: its words, and the values of its variables.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = tuple(texts)
        heads = {piece.partition(":")[0] for text in self.texts for piece in _SEPARATORS.split(text) if ":" in piece}
        self.places = {_place(head) for head in heads if head}

    def holds(self, name: str) -> bool:
        place = _place(_code_of(name))
        return place in self.places or any(_stands_in(name, text) for text in self.texts)


class WithheldError(UsageError):
    """Code that a file or record names and the command line does not."""


_named: _Named | None = None
"""None outside the command: whoever calls the library names the code."""

_used: dict[str, None] = {}
"""Code that was asked for and may be run."""

_parts: dict[Path, str] = {}
"""File or package folder of plug-in code that was imported -> what it is to the user, such as ``loss "./a.py:A"``."""


@contextmanager
def only_named_in(texts: Iterable[str]) -> Iterator[None]:
    """Withhold, inside, all plug-in code that these texts do not name.

    Args:
        texts: the words of the command line, and the values of ``KD_`` variables.
    """
    global _named
    before, _named = _named, _Named(texts)
    _used.clear()
    try:
        yield
    finally:
        _named = before


def permit(names: Iterable[str]) -> None:
    """Let the command run code that is named by ``--plugin``, or by any other option that means code.

    Args:
        names: files, folders of task files, or modules; with ``:Class`` or without.

    Raises:
        UsageError: neither a file, a folder, nor the name of a module.
    """
    for name in names:
        code = _code_of(name)
        if not (Path(code).expanduser().exists() or _MODULE.match(code)):
            what = "neither a file nor the name of a module"
            raise UsageError("CLI-10", what, where=f"--plugin {one_line(name, 200)}", fix="give the path of a .py file")
        if _named is not None:
            _named.places.add(_place(code))


def may_run(name: str) -> bool:
    """Whether the code behind a name may be run.

    Args:
        name: ``module:Class``, ``file.py:Class``, or the path of a task file.

    >>> with only_named_in(["--loss", "0.5*ce+0.5*./mine.py:Mine:mu=1"]):
    ...     may_run("./mine.py:Mine"), may_run("mine.py:Other"), may_run("/elsewhere/mine.py:Mine")
    (True, True, False)
    """
    return _named is None or _named.holds(name)


def check(name: str, where: str) -> None:
    """Refuse code that the user's own line does not name.

    Args:
        name: as for :func:`may_run`.
        where: what it stands for, such as ``loss "./mine.py:Mine"``.

    Raises:
        WithheldError: PLUG-09.
    """
    code = _code_of(name)
    if not may_run(name):
        what = f"a file or record names the code {one_line(code, 200)}, your command line does not; it was not run"
        fix = f"read it, and if you trust it add --plugin {typed(one_line(code, 400))}"
        raise WithheldError("PLUG-09", what, where=where, fix=fix)
    _used[code] = None


def imported(part: str, module: ModuleType) -> None:
    """Remember where the code of a plug-in lies, to know its errors again.

    Args:
        part: what it is to the user.
        module: where its class is defined.
    """
    top = sys.modules.get(module.__name__.partition(".")[0])
    place = next(iter(getattr(top, "__path__", ())), None) or getattr(module, "__file__", None)
    if place is not None:
        _parts[Path(place).resolve()] = part


def blamed(error: BaseException) -> InputError | None:
    """Return an error of a plug-in's own as bad input that names it, None where the code that raised it is ours.

    Args:
        error: anything that is no error of ours.
    """
    if isinstance(error, KDError):
        return None
    for frame, line in reversed([*traceback.walk_tb(error.__traceback__)]):
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(_OURS):
            return None
        part = next((part for place, part in _parts.items() if file.resolve().is_relative_to(place)), None)
        if part is not None:
            said = one_line(str(error), 300)
            what = f"raised {type(error).__name__}{': ' if said else ''}{said}"
            where = f"{part}, {one_line(file.name)} line {line} in {frame.f_code.co_name}"
            return InputError("PLUG-10", what, where=where, fix="correct the plug-in; --debug shows the traceback")
    return None


def flags() -> list[str]:
    """Return the flags that let another command run the code that this one used: ``--plugin`` and its file, each."""
    there = [code for code in _used if Path(code).exists() or _MODULE.match(code)]
    return [word for code in there for word in ("--plugin", code)]


def again(command: str) -> str:
    """Return a command line with what lets it run the code that this one used.

    >>> with only_named_in([]):
    ...     again("kd compare -o study")
    'kd compare -o study'
    """
    return " ".join([command, *map(typed, flags())])


def _code_of(name: str) -> str:
    """Return the file or module of a name.

    >>> _code_of("a/b.py:C"), _code_of("a.b:C"), _code_of("tasks/one.yaml")
    ('a/b.py', 'a.b', 'tasks/one.yaml')
    """
    head, colon, tail = name.rpartition(":")
    return head if colon and tail.isidentifier() else name


def _place(code: str) -> str:
    """Return a module's name as it is, and a path in full."""
    return code if _MODULE.match(code) and not code.endswith(".py") else str(Path(code).expanduser().resolve())


def _stands_in(name: str, text: str) -> bool:
    """Whether a text holds a name of code as a whole; paths may hold any character."""
    at = text.find(name) if ":" in name else -1
    while at >= 0:
        end = at + len(name)
        if (at == 0 or text[at - 1] in _BEFORE) and (end == len(text) or text[end] in _AFTER):
            return True
        at = text.find(name, at + 1)
    return False
