"""Adjusted p-values, the group tied for best, the Pareto front."""

import numpy as np
import pytest
import scipy.stats

from kdcli.statistics import holm, pareto_front, split_difference, tied_for_best


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, None, 0.7]) == [1.0, None, 1.0]
    assert holm([]) == []


def test_the_group_tied_for_best_by_hand():
    assert tied_for_best({"a": 0.02, "b": 0.02, "c": 0.001}, "d") == ("d",)
    assert tied_for_best({"a": 0.03, "b": 0.04}, "d") == ("d", "a", "b")
    assert tied_for_best({"a": None}, "d") == ("d", "a")
    assert tied_for_best({}, "d") == ("d",)


def test_the_truly_best_stays_in_the_group_although_the_best_is_picked_by_looking():
    draw, kept, all_kept, trials = np.random.default_rng(5), 0, 0, 600
    names = list("abcdef")
    seeds = draw.normal(0, 1, (trials, 6, 3, 1)) + draw.normal(0, 1, (trials, 6, 3, 40))
    for table in seeds:
        best = int(table.mean((1, 2)).argmax())
        p_values = split_difference(table[best] - table).p_value((table[best] - table).mean((1, 2)))
        others = {name: float(p) for index, (name, p) in enumerate(zip(names, p_values, strict=True)) if index != best}
        group = tied_for_best(others, names[best])
        kept += "a" in group
        all_kept += len(group) == 6
    assert kept / trials >= 0.95
    assert all_kept / trials < 1.0


def test_without_adjustment_the_group_would_lose_more():
    draw = np.random.default_rng(6)
    values = draw.normal(0, 1, (500, 6, 30))
    lost = 0
    for table in values:
        best = int(table.mean(1).argmax())
        p_values = scipy.stats.ttest_rel(table[best][None], np.delete(table, best, 0), axis=1).pvalue
        plain = (p_values < 0.05).any()
        adjusted = len(tied_for_best(dict(zip("abcde", map(float, p_values), strict=True)), "best")) < 6
        lost += int(plain) - int(adjusted)
        assert plain >= adjusted
    assert lost > 50


@pytest.mark.parametrize(
    ("points", "higher", "front"),
    [
        ({"a": (1.0, 1.0), "b": (1.0, 2.0)}, True, ("a",)),
        ({"a": (1.0, 1.0), "b": (2.0, 2.0), "c": (3.0, 3.0)}, True, ("a", "b", "c")),
        ({"a": (1.0, 1.0), "b": (2.0, 2.0), "c": (3.0, 3.0)}, False, ("a",)),
        ({"a": (1.0, 1.0), "b": (1.0, 1.0)}, True, ("a", "b")),
        ({}, True, ()),
    ],
)
def test_the_front_holds_what_nothing_beats(points, higher, front):
    assert pareto_front(points, higher_is_better=higher) == front


def test_everything_off_the_front_is_beaten_by_something_on_it():
    draw = np.random.default_rng(0)
    points = {str(index): (float(quality), float(cost)) for index, (quality, cost) in enumerate(draw.random((60, 2)))}
    front = pareto_front(points, higher_is_better=True)
    for name, (quality, cost) in points.items():
        beaten = any(points[other][0] > quality and points[other][1] < cost for other in front)
        assert beaten == (name not in front)
