"""Settings with several values: ``lr=1e-4,3e-4`` as axes, their combinations and labels."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from kdcli.config.names import ALIASES, nearest
from kdcli.config.resolve import expanded, iter_settings
from kdcli.config.sections import TrainConfig
from kdcli.errors import UsageError
from kdcli.text import one_line

Choice: TypeAlias = tuple[tuple[str, Any], ...]
"""One value for each of some settings: ``(("lr", 0.0003),)``."""

_FIXED = {"seed": "give --seeds", "keep": "", "log_every": "", "report_to": "", "save_every": ""}
_NOTHING = "it changes no number; leave it out"
STUDENT = "student"
"""The one axis that is no training setting."""


@dataclass(frozen=True)
class Axis:
    """One training setting, or the student, and the values it takes.

    Args:
        name: such as ``lr`` or ``student``.
        values: two or more checked values, in the order given.
    """

    name: str
    values: tuple[Any, ...]


def read_axes(texts: Sequence[str], flag: str) -> tuple[Axis, ...]:
    """Read ``setting=value,value`` texts.

    Args:
        texts: one for each setting.
        flag: where they were given, for messages.

    Raises:
        UsageError: no such training setting, a value of another type, a value or a setting given twice.

    >>> read_axes(["lr=1e-4,3e-4"], "--vary")
    (Axis(name='lr', values=(0.0001, 0.0003)),)
    >>> read_axes(["student=cut:layers=4,ffn=64,random:layers=4,./small"], "--vary")[0].values
    ('cut:layers=4,ffn=64', 'random:layers=4', './small')
    """
    axes = tuple(_axis(text, f"{flag} {one_line(text, 60)}") for text in texts)
    names = [axis.name for axis in axes]
    for name, text in zip(names, texts, strict=True):
        if names.count(name) > 1:
            raise UsageError("CLI-08", f"{name} is given twice", where=f"{flag} {one_line(text, 60)}", fix="join them")
    return axes


def combinations(axes: Sequence[Axis]) -> list[Choice]:
    """Return every combination, the last axis changing fastest; one empty choice for no axes.

    >>> len(combinations(read_axes(["lr=1,2", "batch_size=4,8"], "--vary")))
    4
    """
    return [
        tuple(zip([axis.name for axis in axes], values, strict=True))
        for values in itertools.product(*(axis.values for axis in axes))
    ]


def format_choice(choice: Choice) -> str:
    """Return what a choice is called.

    >>> format_choice((("lr", 0.0003), ("batch_size", 8)))
    'lr=0.0003, batch_size=8'
    """
    return ", ".join(f"{name}={value}" for name, value in choice)


def label_with(label: str, choice: Choice) -> str:
    """Return the label of an objective trained with a choice.

    >>> label_with("akl", (("lr", 0.0003),)), label_with("akl", ())
    ('akl [lr=0.0003]', 'akl')
    """
    return f"{label} [{format_choice(choice)}]" if choice else label


def split_label(label: str) -> tuple[str, str]:
    """Return the objective and the values that a label of a line names, as it was typed.

    >>> split_label("akl [lr=0.0003]"), split_label("akl")
    (('akl', 'lr=0.0003'), ('akl', ''))
    """
    objective, _, values = label.partition(" [")
    return objective, values.removesuffix("]")


def apply_choice(train: TrainConfig, *choices: Choice) -> TrainConfig:
    """Return training settings with the chosen values in place.

    >>> apply_choice(TrainConfig(), (("lr", 0.1),)).lr
    0.1
    """
    return train.model_copy(update={name: value for name, value in itertools.chain(*choices) if name != STUDENT})


def _axis(text: str, where: str) -> Axis:
    name, equals, values = text.partition("=")
    name = name.strip().replace("-", "_").removeprefix("train.")
    name = ALIASES.get(name, name)
    settings = iter_settings(TrainConfig)
    if not equals:
        raise UsageError("CLI-19", "expected setting=value,value", where=where, fix="write lr=1e-4,3e-4")
    if name == STUDENT:
        return _check_values(name, tuple(expanded(one, where) for one in _students(values)), where)
    if name not in settings:
        near = nearest(name, {known: known for known in settings})
        fix = f"did you mean {near}?" if near else "name one such as lr or batch_size; docs/cli.md lists them"
        raise UsageError("CLI-19", f"{one_line(name, 40)} is not a training setting", where=where, fix=fix)
    if name in _FIXED:
        raise UsageError("CLI-09", f"{name} cannot vary here", where=where, fix=_FIXED[name] or _NOTHING)

    def fault(code: str, what: str, fix: str) -> UsageError:
        return UsageError(code, what, where=where, fix=fix)

    found = tuple(settings[name].from_text(piece.strip(), fault) for piece in values.split(",") if piece.strip())
    return _check_values(name, found, where)


def _students(text: str) -> tuple[str, ...]:
    """Cut a list of students at the commas between them; a piece ``size=4`` belongs to the one before it."""
    found: list[str] = []
    for piece in filter(None, map(str.strip, text.split(","))):
        if found and ":" in found[-1] and "=" in piece and ":" not in piece.partition("=")[0]:
            found[-1] += f",{piece}"
        else:
            found.append(piece)
    return tuple(found)


def _check_values(name: str, found: tuple[Any, ...], where: str) -> Axis:
    if len(found) < 2:
        raise UsageError("CLI-20", f"{name} needs two values or more", where=where, fix=f"or give {name} itself")
    for value in found:
        if found.count(value) > 1:
            raise UsageError("CLI-08", f"{name}={value} is given twice", where=where, fix="give each value once")
    return Axis(name, found)
