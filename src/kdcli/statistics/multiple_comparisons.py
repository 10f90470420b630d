"""Holm's adjustment, the group tied for best, and the Pareto front."""

from collections.abc import Mapping, Sequence

from kdcli.statistics.estimate import LEVEL


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjust p-values for having tested several contenders, by Holm's step-down rule.

    Args:
        p_values: None stays None and does not count.

    >>> holm([0.01, None, 0.04, 0.03])
    [0.03, None, 0.06, 0.06]
    """
    tested = sorted((value, index) for index, value in enumerate(p_values) if value is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (value, index) in enumerate(tested):
        highest = max(highest, min(1.0, (len(tested) - rank) * value))
        adjusted[index] = highest
    return adjusted


def tied_for_best(p_values: Mapping[str, float | None], best: str) -> tuple[str, ...]:
    """Return the best and all that do not differ from it significantly.

    Args:
        p_values: contender -> p of its paired difference to the best, unadjusted; None where no test is possible.
        best: the contender with the best mean.

    >>> tied_for_best({"a": 0.001, "b": 0.4}, "c")
    ('c', 'b')
    """
    adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    tied = [name for name, value in adjusted.items() if name != best and (value is None or value >= LEVEL)]
    return (best, *tied)


def pareto_front(points: Mapping[str, tuple[float, float]], *, higher_is_better: bool) -> tuple[str, ...]:
    """Return the names that no other point beats in quality without costing more, or equals for less.

    Args:
        points: name -> quality and cost.
        higher_is_better: which quality is better; a lower cost always is.

    >>> pareto_front({"a": (1.0, 1.0), "b": (2.0, 2.0), "c": (1.5, 3.0)}, higher_is_better=True)
    ('a', 'b')
    """
    sign = 1.0 if higher_is_better else -1.0

    def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
        better, cheaper = sign * (one[0] - other[0]), other[1] - one[1]
        return better >= 0 and cheaper >= 0 and (better > 0 or cheaper > 0)

    return tuple(name for name, point in points.items() if not any(beats(other, point) for other in points.values()))
