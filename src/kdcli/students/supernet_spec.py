"""The text form of a supernet that a teacher becomes: ``supernet:widths=0.5+1,depths=0.5+1,update=full``."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any, Literal, NoReturn, TypeAlias, get_args

from transformers import PreTrainedConfig

from kdcli.errors import UsageError
from kdcli.models.left_out import left_out_of
from kdcli.registry.spec import student_options
from kdcli.students.palette import check_depth, check_width
from kdcli.students.spec import OF_LAYERS, OF_PARTS, CutSpec, Score
from kdcli.text import one_line

PREFIX = "supernet:"
Update: TypeAlias = Literal["full", "low-rank"]
UPDATES: tuple[Update, ...] = get_args(Update)
_EXAMPLE = "supernet:widths=0.5+1,depths=0.5+1"


@dataclass(frozen=True)
class SupernetSpec:
    """How a teacher becomes a network of several sizes, and how these are trained.

    Args:
        widths: shares of heads, feed-forward units and hidden dimensions, ascending, the last one 1.
        depths: shares of the layers, ascending, the last one 1.
        by: the score that puts heads, units and hidden dimensions in their order.
        layers_by: the score that says which layers a smaller depth keeps.
        rows: rows that scores are taken on.
        update: what is trained: all weights, or a low-rank pair for each matrix of the layers.
        rank: of the pairs.
        sizes: sizes trained in one step at most: the largest, the smallest, the others drawn.
        stages: shares of the steps: of the largest alone, of all widths, of all widths and depths.
        alpha: share of the distillation from the largest; the rest is cross-entropy.
        beta: weight of the term on hidden states.
        gamma: power of the scale of a smaller size's gradient, ``(n_1 / n_j) ** gamma``.
    """

    widths: tuple[float, ...] = (0.5, 1.0)
    depths: tuple[float, ...] = (1.0,)
    by: Score = "magnitude"
    layers_by: Score = "spaced"
    rows: int = 64
    update: Update = "full"
    rank: int = 8
    sizes: int = 4
    stages: tuple[float, float, float] = (0.0, 0.5, 0.5)
    alpha: float = 0.9
    beta: float = 0.1
    gamma: float = 0.5

    def __str__(self) -> str:
        pairs = [(one.name, getattr(self, one.name), one.default) for one in fields(self)]
        told = [f"{name}={_text(value)}" for name, value, default in pairs if name == "widths" or value != default]
        return PREFIX + ",".join(told)

    @property
    def scoring(self) -> CutSpec:
        """What asks for the scores that are needed."""
        layers = None if self.depths == (1.0,) else 1
        return CutSpec(layers=layers, ffn=1, width=1, by=self.by, layers_by=self.layers_by, rows=self.rows)

    @property
    def used_stages(self) -> tuple[float, float, float]:
        """Shares of the steps, sum 1; a stage that would train no other sizes than its neighbour goes to that one."""
        whole, widths, both = (one / sum(self.stages) for one in self.stages)
        if self.depths == (1.0,):
            return whole, widths + both, 0.0
        return (whole, 0.0, widths + both) if self.widths == (1.0,) else (whole, widths, both)

    def check_on(self, config: PreTrainedConfig, where: str) -> tuple[int, ...]:
        """Return the number of layers of every depth, and refuse sizes that a teacher cannot have.

        Args:
            config: the teacher's.
            where: the teacher, for messages.

        Raises:
            UsageError: SUP-02.
            InputError: CUT-01, its family cannot be cut.
        """
        for width in self.widths:
            check_width(width, config, where)
        if left_out_of(config):
            fix = "give a teacher whose layers are whole"
            raise UsageError("SUP-02", "halves of its layers are left out", where=one_line(where), fix=fix)
        return tuple(check_depth(depth, config, where) for depth in self.depths)


def is_supernet(student: str) -> bool:
    """Whether a student is a ``supernet:`` spec."""
    return student.startswith(PREFIX)


def refuse_several_sizes(student: str | None, what: str) -> None:
    """Refuse a student of several sizes where one is expected.

    Raises:
        UsageError: SUP-05.
    """
    if student is not None and is_supernet(student):
        fix = "train it with kd supernet; kd student FOLDER --pick makes a student of one of its sizes"
        raise UsageError("SUP-05", what, where=f'student "{one_line(student, 80)}"', fix=fix)


def parse_supernet(text: str) -> SupernetSpec:
    """Read a ``supernet:`` spec.

    Args:
        text: as typed.

    Raises:
        UsageError: SUP-01 naming the option or value that cannot be used.

    >>> str(parse_supernet("supernet: widths=0.5+1, depths=1, sizes=3"))
    'supernet:widths=0.5+1,sizes=3'
    """
    values = student_options(text, [field.name for field in fields(SupernetSpec)], "SUP-01", _EXAMPLE)
    given: dict[str, Any] = {key: _READERS[key](text, key, value) for key, value in values.items()}
    return _checked(text, SupernetSpec(**given))


def _checked(text: str, spec: SupernetSpec) -> SupernetSpec:
    for name, shares in (("widths", spec.widths), ("depths", spec.depths)):
        if shares[-1] != 1.0:
            added = ",".join(f"{one:g}" for one in (*shares, 1.0))
            _refuse(text, f"{name} lack 1, the size that teaches the others", f"give --{name} {added}")
    if spec.widths == spec.depths == (1.0,):
        _refuse(text, "widths and depths name one size alone", "give --widths 0.5,1")
    if not sum(spec.stages) or not sum(spec.used_stages[1:]):
        _refuse(text, "stages leave the smaller sizes no steps", "give --set supernet.stages=0,0.5,0.5")
    return spec


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return "+".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _shares(text: str, key: str, value: str) -> tuple[float, ...]:
    found = tuple(sorted({_number(text, key, piece) for piece in value.split("+")}))
    if not all(0 < one <= 1 for one in found):
        _refuse(text, f"{key} are shares above 0, at most 1", f"give --{key} 0.5,1")
    return found


def _stages(text: str, key: str, value: str) -> tuple[float, ...]:
    found = tuple(_number(text, key, piece) for piece in value.split("+"))
    if len(found) != 3 or min(found) < 0:
        _refuse(text, "stages are three shares of the steps, none below 0", "give --set supernet.stages=0,0.5,0.5")
    return found


def _number(text: str, key: str, value: str) -> float:
    try:
        found = float(value)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        _refuse(text, f'{key}="{one_line(value, 40)}" is no number', f"write {_EXAMPLE}")
    return found


def _bounded(low: float, high: float) -> Callable[[str, str, str], float]:
    def read(text: str, key: str, value: str) -> float:
        found = _number(text, key, value)
        if not low <= found <= high:
            _refuse(text, f"{key}={found:g} is outside {low:g} to {high:g}", f"give {key} between the two")
        return found

    return read


def _count(least: int) -> Callable[[str, str, str], int]:
    def read(text: str, key: str, value: str) -> int:
        if not value.isascii() or not value.isdecimal() or not least <= int(value[:9]) <= 1_000_000:
            _refuse(text, f'{key}="{one_line(value, 40)}" is no whole number from {least} on', f"give {key}={least}")
        return int(value)

    return read


def _named(allowed: tuple[str, ...]) -> Callable[[str, str, str], str]:
    def read(text: str, key: str, value: str) -> str:
        if value not in allowed:
            near = get_close_matches(value, allowed, 1)
            fix = f"use {near[0] if near else ' or '.join(allowed)}"
            _refuse(text, f'{key}="{one_line(value, 40)}" is not known', fix)
        return value

    return read


_READERS: dict[str, Callable[[str, str, str], object]] = {
    "widths": _shares, "depths": _shares, "by": _named(OF_PARTS), "layers_by": _named(OF_LAYERS), "rows": _count(1),
    "update": _named(UPDATES), "rank": _count(1), "sizes": _count(2), "stages": _stages,
    "alpha": _bounded(0, 1), "beta": _bounded(0, 1e6), "gamma": _bounded(-4, 4),
}  # fmt: skip


def _refuse(text: str, what: str, fix: str) -> NoReturn:
    raise UsageError("SUP-01", what, where=f'"{one_line(text, 120)}"', fix=fix)
