"""A curve: series along an axis, as data; plots.py draws every curve."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kdcli.bounded import ANYWHERE, Bounds, score_interval
from kdcli.metrics.score import Array, Finish

Kind: TypeAlias = Literal["line", "points", "bars", "reliability"]
Numbers: TypeAlias = tuple[float, ...]
Values: TypeAlias = Sequence[int | float] | NDArray[Any]


@dataclass(frozen=True)
class Series:
    """One line, or one set of points or bars, of a curve; make it with ``series``.

    Args:
        label: what a legend calls it.
        x: where each point stands.
        y: its height; NaN where there is none.
        low: lower end of each point's 95 % interval.
        high: upper end of it.
        count: how many observations each point summarises.
        left: where the stretch of x that each point stands for begins, such as a bin's edge.
        right: where it ends.
    """

    label: str
    x: Numbers
    y: Numbers
    low: Numbers | None = None
    high: Numbers | None = None
    count: Numbers | None = None
    left: Numbers | None = None
    right: Numbers | None = None

    def __post_init__(self) -> None:
        """Refuse lists that do not fit together: a slip of the metric, not of the user."""
        for name in ("y", "low", "high", "count", "left", "right"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.x):
                raise ValueError(f'series "{self.label}" has {len(self.x)} x but {len(values)} {name}')


@dataclass(frozen=True)
class Curve:
    """A named picture's data.

    Args:
        name: letters, digits, ``-`` and ``_``; the files are called after it.
        title: one line above the picture.
        x_label: what the x axis measures, with its unit.
        y_label: what the y axis measures, with its unit.
        series: what is drawn, in the order of the legend.
        kind: "line" with a band for the interval, "points" with error bars, "bars", or
            "reliability": accuracy by confidence against the diagonal.
        ticks: names of x = 0, 1, 2, ... where x counts groups; empty where x is a quantity.
    """

    name: str
    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    kind: Kind = "line"
    ticks: tuple[str, ...] = ()


def series(
    label: str, x: Values, y: Values, *, low: Values | None = None, high: Values | None = None,
    count: Values | None = None, left: Values | None = None, right: Values | None = None,
) -> Series:  # fmt: skip
    """Make a series from anything numpy reads, of shape ``[points]``; see ``Series`` for the arguments.

    >>> series("student", [1, 2], np.array([0.5, 0.25])).y
    (0.5, 0.25)
    """
    others = {"low": low, "high": high, "count": count, "left": left, "right": right}
    given = {name: _numbers(values) for name, values in others.items() if values is not None}
    return Series(label, _numbers(x), _numbers(y), **given)


def as_json(curve: Curve) -> dict[str, Any]:
    """Return a curve as JSON knows it: no NaN and no infinity, they become null.

    >>> as_json(Curve("a", "A", "x", "y", (series("s", [0.0], [math.nan]),)))["series"][0]["y"]
    [None]
    """
    document = asdict(curve)
    document["series"] = [
        {name: _plain(values) for name, values in entry.items() if values is not None} for entry in document["series"]
    ]
    return document | {"ticks": list(curve.ticks)}


def from_json(document: Mapping[str, Any]) -> Curve:
    """Return the curve that ``as_json`` wrote; null becomes NaN.

    Raises:
        KeyError, TypeError, ValueError: it is no curve.

    >>> from_json(as_json(Curve("a", "A", "x", "y", (series("s", [0.0], [0.5]),)))).series[0].y
    (0.5,)
    """
    entries = [
        Series(
            entry["label"],
            **{name: tuple(map(_number, values)) for name, values in entry.items() if name != "label"},
        )
        for entry in document["series"]
    ]
    return Curve(**{**document, "series": tuple(entries), "ticks": tuple(document["ticks"])})


def _numbers(values: Values) -> Numbers:
    return tuple(np.asarray(values, dtype=np.float64).ravel().tolist())


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _plain(values: Any) -> Any:
    """Leave texts as they are; in numbers, replace what JSON cannot hold."""
    return values if isinstance(values, str) else [value if math.isfinite(value) else None for value in values]


# A line over positions with its 95 % interval over examples, from the same additive statistics as a score.


def mean_with_interval(
    label: str, x: Values, sums: Array, finish: Finish, count: Values | None = None, bounds: Bounds = ANYWHERE
) -> Series:
    """Make a series whose every point is a score, with the jackknife's interval.

    ``y = finish(sum_i sums_i)``; with ``y_i`` the same without example i, ``n`` examples and their
    mean ``m``, the standard error is ``sqrt((n - 1)/n sum_i (y_i - m)^2)`` and the band Student's t
    interval with n - 1 degrees of freedom. Examples without statistics at a point do not count
    there; with fewer than two the band is NaN.

    Args:
        label: what a legend calls it.
        x: where each point stands, ``[points]``.
        sums: additive statistics of each example at each point, ``[examples, points, k]``.
        finish: turns summed statistics ``[..., k]`` into scores ``[...]``.
        count: how many observations each point summarises, ``[points]``.
        bounds: lowest and highest value of a point; the band stays within.

    Reference: Efron and Tibshirani 1993, An Introduction to the Bootstrap, equation 11.5.

    >>> from kdcli.metrics.score import ratio
    >>> line = mean_with_interval("mean", [1], np.array([[[1.0, 1.0]], [[3.0, 1.0]]]), ratio())
    >>> line.y, round(line.low[0], 4), round(line.high[0], 4)
    ((2.0,), -10.7062, 14.7062)
    """
    from scipy.special import stdtrit

    whole = sums.sum(0)
    y = np.asarray(finish(whole), dtype=np.float64)
    examples = np.maximum((sums != 0.0).any(-1).sum(0), 2)
    least = stdtrit(examples - 1, 0.975) ** 2 / examples
    low, high = score_interval(y, _half_width(sums, whole, finish), bounds, least)
    return series(label, x, y, low=low, high=high, count=count)


def _half_width(sums: Array, whole: Array, finish: Finish) -> Array:
    from scipy.special import stdtrit

    counted = (sums != 0.0).any(-1)
    examples = counted.sum(0)
    enough = np.maximum(examples, 2)
    left_out = np.where(counted, np.asarray(finish(whole - sums), dtype=np.float64), 0.0)
    apart = np.where(counted, left_out - left_out.sum(0) / enough, 0.0)
    error = np.sqrt((enough - 1) / enough * np.square(apart).sum(0))
    return np.where(examples > 1, error * stdtrit(enough - 1, 0.975), np.nan)
