"""The share of a gap that was closed, against numbers worked out by other means."""

import math

import numpy as np
import pytest
from scipy.stats import t

from kdcli.metrics.score import Score
from kdcli.statistics import share_of_gap

EXAMPLES = 60


def score(values, better="lower"):
    values = np.asarray(values, dtype=float)
    return Score("m", np.stack([values, np.ones_like(values)], -1), lambda sums: sums[..., 0] / sums[..., 1], better)


def draws(seed, contender=4.6, seeds=1, spread=0.0):
    """Start at 5, target at 4, contenders in between; hard examples are hard for all."""
    random = np.random.default_rng(seed)
    hard = random.normal(size=EXAMPLES)
    start, target = 5 + hard + 0.3 * random.normal(size=EXAMPLES), 4 + hard + 0.5 * random.normal(size=EXAMPLES)
    each = [
        contender + hard + 0.4 * random.normal(size=EXAMPLES) + spread * random.normal() for _ in range(seeds)
    ]  # fmt: skip
    return each, start, target


def test_one_seed_gives_fiellers_closed_form():
    (contender,), start, target = draws(1)
    found = share_of_gap([score(contender)], [score(start)], [score(target)])
    moved, gap = start - contender, start - target
    a, b = moved.mean(), gap.mean()
    (va, vab), (_, vb) = np.cov(moved, gap) / EXAMPLES
    squared = t.ppf(0.975, EXAMPLES - 1) ** 2
    # (a - r b)^2 = t^2 (va - 2 r vab + r^2 vb), a quadratic in r
    ends = np.sort(np.roots([b**2 - squared * vb, -2 * (a * b - squared * vab), a**2 - squared * va]).real)
    assert found is not None
    assert found.mean == pytest.approx(a / b)
    assert (found.low, found.high) == pytest.approx(tuple(ends))


def test_the_ends_are_the_shares_at_which_a_paired_difference_of_objectives_is_just_sure():
    from kdcli.statistics import two_level

    each, start, target = draws(2, seeds=3, spread=0.1)
    found = share_of_gap([score(one) for one in each], [score(start)], [score(target)])
    for end in (found.low, found.high):
        table = np.stack([(start - one) - end * (start - target) for one in each])
        assert two_level(float(table.mean()), table, difference=True).p_value == pytest.approx(0.05, abs=1e-4)


def test_the_direction_of_the_score_does_not_matter():
    each, start, target = draws(3)
    down = share_of_gap([score(each[0])], [score(start)], [score(target)])
    up = share_of_gap([score(-each[0])], [score(-start)], [score(-target)])
    assert (down.mean, down.low, down.high) == pytest.approx((up.mean, up.low, up.high))


def test_reaching_the_target_is_one_and_staying_is_nothing():
    _, start, target = draws(4)
    for contender, share in ((target, 1.0), (start, 0.0)):
        found = share_of_gap([score(contender)], [score(start)], [score(target)])
        assert (found.mean, found.low, found.high) == pytest.approx((share,) * 3, abs=1e-9)


def test_without_a_clear_gap_there_is_no_share():
    random = np.random.default_rng(5)
    start, target, contender = random.normal(size=(3, EXAMPLES))
    assert share_of_gap([score(contender)], [score(start)], [score(target)]) is None
    whole = Score("m", None, score(start).finish, "lower", corpus=1.0)
    assert share_of_gap([whole], [score(start)], [score(target)]) is None


@pytest.mark.parametrize(("seeds", "spread"), [(1, 0.0), (3, 0.1)])
def test_the_interval_covers_the_true_share(seeds, spread):
    hits = []
    for number in range(100):
        each, start, target = draws((seeds, number), seeds=seeds, spread=spread)
        found = share_of_gap([score(one) for one in each], [score(start)], [score(target)])
        hits.append(found.low <= 0.4 <= found.high)
    assert np.mean(hits) > 0.95 - 3 * math.sqrt(0.05 * 0.95 / len(hits))
    assert np.mean(hits) < 1.0
