"""The sizes of a supernet: each smaller one keeps the first entries of everything, and some of the layers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NoReturn

from transformers import PreTrainedConfig

from kdcli.errors import InputError, UsageError
from kdcli.models.family_layout import Form, form_of
from kdcli.students.cut import PALETTE, Kept, counter
from kdcli.text import one_line

_NEAR = 0.01
"""How far from a whole number a share of a size may be: 0.333 of 3 is 1."""


@dataclass(frozen=True, order=True)
class Size:
    """One size of a supernet, as shares of the whole one.

    Args:
        width: of heads, feed-forward units and hidden dimensions.
        depth: of layers.

    >>> str(Size(0.5, 1.0))
    'width=0.5,depth=1'
    """

    width: float
    depth: float

    def __str__(self) -> str:
        return f"width={self.width:g},depth={self.depth:g}"


@dataclass(frozen=True)
class Palette:
    """The sizes of one supernet; every width goes with every depth.

    Args:
        widths: shares in ascending order, the last one 1.
        layers: for each depth, the layers that stay, in ascending order; the last entry is all of them.
    """

    widths: tuple[float, ...]
    layers: tuple[tuple[int, ...], ...]

    @property
    def depths(self) -> tuple[float, ...]:
        """Shares of the layers, in ascending order."""
        return tuple(len(one) / len(self.layers[-1]) for one in self.layers)

    @property
    def sizes(self) -> tuple[Size, ...]:
        """All sizes, the smallest first and the whole one last."""
        return tuple(sorted(Size(width, depth) for width, depth in product(self.widths, self.depths)))

    def kept(self, size: Size, form: Form) -> Kept:
        """Return what a size keeps of the supernet.

        Args:
            size: one of ``sizes``.
            form: the supernet's own sizes.
        """
        layers = self.layers[self.depths.index(size.depth)]
        groups, ffn, width = (
            tuple(range(round(size.width * one))) for one in (form.groups, form.ffn, form.width)
        )  # fmt: skip
        return Kept(layers, (groups,) * len(layers), (ffn,) * len(layers), width)

    def as_setting(self) -> dict[str, Any]:
        """Return the entry of a config."""
        return {"widths": list(self.widths), "layers": [list(one) for one in self.layers]}


def is_supernet_config(config: PreTrainedConfig) -> bool:
    """Whether a model's config says that it is a supernet."""
    return getattr(config, PALETTE, None) is not None


def palette_of(config: PreTrainedConfig, where: str) -> Palette:
    """Return the sizes that a supernet's config names.

    Args:
        config: of the language model.
        where: the model, for messages.

    Raises:
        InputError: SUP-04, it names none, or none that the model can have.
    """
    given, form = getattr(config, PALETTE, None), form_of(config, where)
    if given is None:
        fix = "give the folder that kd supernet wrote"
        raise InputError("SUP-04", "the model has one size alone", where=one_line(where), fix=fix)
    known = isinstance(given, Mapping) and set(given) == {"widths", "layers"}
    widths, layers = (given["widths"], given["layers"]) if known else ([], [])
    whole = list(range(form.layers))
    fine = (
        _ascending(widths, float, 0.0, 1.0)
        and isinstance(layers, list)
        and all(_ascending(one, int, -1, form.layers - 1) for one in layers)
        and whole in layers
        and [len(one) for one in layers] == sorted({len(one) for one in layers})
    )
    if not fine or widths[-1] != 1:
        what = f"its {PALETTE} names no sizes of it: {one_line(str(given), 80)}"
        raise InputError("SUP-04", what, where=one_line(where), fix="restore config.json")
    found = Palette(tuple(map(float, widths)), tuple(map(tuple, layers)))
    for width in found.widths:
        check_width(width, config, where)
    return found


def _ascending(values: object, kind: type, above: float, most: float) -> bool:
    """Whether these are numbers of a kind in ascending order, each once, between two bounds."""
    if not isinstance(values, list) or not values:
        return False
    if not all(isinstance(one, kind) and not isinstance(one, bool) and above < one <= most for one in values):
        return False
    return values == sorted(set(values))


def check_width(width: float, config: PreTrainedConfig, where: str) -> None:
    """Refuse a width at which a model has no whole numbers of groups of heads, units or hidden dimensions.

    Args:
        width: a share.
        config: the whole model's.
        where: the model, for messages.

    Raises:
        UsageError: SUP-02.
    """
    form = form_of(config, where)
    per, heads = form.heads_per_group, "heads" if form.heads_per_group == 1 else "groups of heads"
    shared = "" if per == 1 else f" ({per} query heads share keys and values, and stay or go together)"
    counted = {f"{heads}{shared}": form.groups, "feed-forward units": form.ffn, "hidden dimensions": form.width}
    for name, count in counted.items():
        if not _whole(width * count):
            able = [
                one for one in range(1, form.groups + 1) if all(_whole(one / form.groups * n) for n in counted.values())
            ]
            shares = ",".join(f"{one / form.groups:.3g}" for one in able[-8:])
            what = f"width {width:g} leaves {width * count:g} of {count:,} {name}"
            raise UsageError("SUP-02", what, where=one_line(where), fix=f"choose --widths among {shares}")
    if form.embedding != form.width and round(width * form.width) == form.embedding:
        what = f"width {width:g} is the size of its embedding, and the projection between the two would go"
        raise UsageError("SUP-02", what, where=one_line(where), fix="leave that width out")


def check_depth(depth: float, config: PreTrainedConfig, where: str) -> int:
    """Return the layers of a depth.

    Raises:
        UsageError: SUP-02, no whole number.
    """
    layers: int = config.num_hidden_layers
    if not _whole(depth * layers):
        shares = ",".join(f"{one / layers:.3g}" for one in range(max(layers - 7, 1), layers + 1))
        what = f"depth {depth:g} leaves {depth * layers:g} of {layers} layers"
        raise UsageError("SUP-02", what, where=one_line(where), fix=f"choose --depths among {shares}")
    return round(depth * layers)


def _whole(number: float) -> bool:
    return round(number) >= 1 and math.isclose(number, round(number), rel_tol=0, abs_tol=_NEAR)


# Which size is wanted.


@dataclass(frozen=True)
class Pick:
    """What one wants of a size.

    Args:
        params: parameters at most.
        width: its width.
        depth: its depth.
    """

    params: float = math.inf
    width: float | None = None
    depth: float | None = None


def parse_pick(text: str) -> Pick:
    """Read what is wanted of a size.

    Args:
        text: as typed: ``params<=1e6``, ``width=0.5``, ``depth=0.5``, or several with commas between.

    Raises:
        UsageError: SUP-03.

    >>> parse_pick("params<=1e6, depth=0.5")
    Pick(params=1000000.0, width=None, depth=0.5)
    """
    found: dict[str, float] = {}
    for piece in filter(str.strip, text.split(",")):
        sign = "<=" if "<=" in piece else "="
        name, _, value = (part.strip() for part in piece.partition(sign))
        if (name, sign) not in (("params", "<="), ("width", "="), ("depth", "=")) or name in found:
            _refuse_pick(text, f'"{one_line(piece.strip(), 40)}" is not params<=N, width=X or depth=X, each once')
        try:
            found[name] = float(value)
        except ValueError:
            _refuse_pick(text, f'"{one_line(value, 40)}" is no number')
    if not found or not all(value > 0 for value in found.values()):
        _refuse_pick(text, "nothing is picked" if not found else "a size is above 0")
    return Pick(**found)


def pick_size(pick: Pick, palette: Palette, config: PreTrainedConfig, where: str) -> tuple[Size, int]:
    """Return the size of most parameters that is as wanted, and its parameters.

    Args:
        pick: what is wanted.
        palette: the sizes there are.
        config: the supernet's.
        where: the supernet, for messages.

    Raises:
        UsageError: SUP-03, there is none.
    """
    counted = count_sizes(palette, config, where)
    near = {
        size: number
        for size, number in counted.items()
        if all(want is None or math.isclose(want, has, abs_tol=_NEAR) for want, has in _pairs(pick, size))
    }
    if not near:
        shares = " and ".join(
            f"{name} {', '.join(f'{one:.3g}' for one in values)}"
            for name, values in (("width", palette.widths), ("depth", palette.depths))
        )
        what = f"the supernet has no such size; it has {shares}"
        raise UsageError("SUP-03", what, where=one_line(where), fix="pick one of these")
    fitting = [(number, size.depth, size) for size, number in near.items() if number <= pick.params]
    if not fitting:
        least = min(near.values())
        what = f"no size has at most {pick.params:,.0f} parameters; the smallest has {least:,}"
        raise UsageError("SUP-03", what, where=one_line(where), fix=f'give --pick "params<={least}"')
    number, _, size = max(fitting)
    return size, number


def count_sizes(palette: Palette, config: PreTrainedConfig, where: str) -> dict[Size, int]:
    """Return the parameters of every size."""
    form, count = form_of(config, where), counter(config, where)
    return {size: count(palette.kept(size, form).form(form)) for size in palette.sizes}


def _pairs(pick: Pick, size: Size) -> Sequence[tuple[float | None, float]]:
    return (pick.width, size.width), (pick.depth, size.depth)


def _refuse_pick(text: str, what: str) -> NoReturn:
    where, fix = f'--pick "{one_line(text, 60)}"', 'write --pick "params<=1e6" or --pick width=0.5,depth=1'
    raise UsageError("SUP-03", what, where=where, fix=fix)
