"""The interval over seeds and examples: it covers what it says, and wrong ones do not pass the same check."""

import numpy as np
import pytest
from scipy.special import stdtrit

from kdcli.metrics.score import Score, ratio
from kdcli.statistics import (
    difference_over_both,
    difference_over_examples,
    difference_over_seeds,
    over_both,
    over_seeds,
    split,
    split_difference,
    variance_shares,
)

TRIALS = 6000
NOISE = 3 * np.sqrt(0.95 * 0.05 / TRIALS)


def tables(seeds, examples, share, rest=0.5, trials=TRIALS, skew=False):
    """Tables ``[trials, seeds, examples]`` of mean 0; ``share`` of the mean's variance is due to seeds."""
    draw = np.random.default_rng([seeds, examples, round(100 * share)])
    of_seed = draw.normal(0, np.sqrt(share * seeds), (trials, seeds, 1))
    hard = draw.exponential(1, (trials, 1, examples)) - 1 if skew else draw.normal(0, 1, (trials, 1, examples))
    noise = draw.standard_normal((trials, seeds, examples), dtype=np.float32) * rest * np.sqrt(examples)
    return of_seed + hard * np.sqrt((1 - share) * examples) + noise


def covered(values, half):
    return float(np.mean(np.abs(values.mean((1, 2))) <= half))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8, 1.0])
@pytest.mark.parametrize(("seeds", "examples"), [(3, 50), (5, 50), (3, 200)])
def test_the_interval_covers_95_of_100(seeds, examples, share):
    values = tables(seeds, examples, share, trials=TRIALS)
    assert covered(values, split(values).half_width(0.05)) == pytest.approx(0.95, abs=0.015 + NOISE)


@pytest.mark.parametrize("level", [0.01, 0.002])
def test_stricter_levels_hold_too(level):
    values = tables(3, 50, 0.8)
    missed = 1 - covered(values, split(values).half_width(level))
    assert missed < 1.3 * level + 3 * np.sqrt(level / TRIALS)


def test_skewed_examples_are_covered_too():
    values = tables(3, 100, 0.3, skew=True)
    assert covered(values, split(values).half_width(0.05)) == pytest.approx(0.95, abs=0.015 + NOISE)


def test_wrong_intervals_fail_the_same_check():
    values = tables(3, 50, 0.3)
    pooled = values.reshape(TRIALS, -1)
    naive = 1.96 * pooled.std(1, ddof=1) / np.sqrt(pooled.shape[1])
    over_examples = 2.01 * values.mean(1).std(1, ddof=1) / np.sqrt(50)
    seeds_alone = stdtrit(2, 0.975) * values.mean(2).std(1, ddof=1) / np.sqrt(3)
    assert covered(values, naive) < 0.8
    assert covered(values, over_examples) < 0.93
    assert covered(values, seeds_alone) < 0.93


@pytest.mark.parametrize("seed_effect", [0.0, 0.3, 2.0])
def test_identical_contenders_have_uniform_p_values(seed_effect):
    """Where seeds do not matter p is larger: their agreement by chance is not believed."""
    draw = np.random.default_rng(round(10 * seed_effect))
    hardness = draw.normal(0, 3, (1, 1, 60))
    one, other = (
        hardness + seed_effect * draw.normal(0, 1, (TRIALS, 3, 1)) + draw.normal(0, 1, (TRIALS, 3, 60))
        for _ in range(2)
    )
    p_values = split_difference(one - other).p_value((one - other).mean((1, 2)))
    levels = np.array([0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9])
    found = np.mean(p_values[:, None] <= levels, axis=0)
    assert (found < levels + NOISE + 0.02).all()
    assert seed_effect < 1 or found == pytest.approx(levels, abs=0.025)
    assert found[1] < 0.05 + NOISE


def test_the_p_value_is_where_the_interval_reaches_zero():
    values = tables(3, 20, 0.4, trials=200)
    parts, means = split_difference(values), values.mean((1, 2))
    p_values = parts.p_value(means)
    assert parts.half_width(p_values) == pytest.approx(np.abs(means), rel=1e-6)
    assert ((p_values < 0.05) == (np.abs(means) > parts.half_width(0.05))).all()


def score(values) -> Score:
    return Score("s", np.stack([values, np.ones(len(values))], axis=-1), ratio(), "higher")


def test_the_estimate_of_means_is_the_two_level_one():
    table = np.random.default_rng(3).normal(1, 1, (3, 30))
    found = over_both([score(row) for row in table])
    assert (found.unit, found.count) == ("seeds and examples", 3)
    assert found.mean == pytest.approx(table.mean())
    assert found.half_width == pytest.approx(float(split(table).half_width(0.05)))
    assert found.p_value is None


def test_differences_are_paired_by_seed_and_example():
    draw = np.random.default_rng(4)
    hardness, luck = draw.normal(0, 10, (1, 80)), draw.normal(0, 5, (3, 1))
    gain = draw.normal(0.5, 0.1, (3, 80))
    ours, theirs = ([score(row) for row in table] for table in (hardness + luck + gain, hardness + luck + 0 * gain))
    found = difference_over_both(ours, theirs)
    assert found.mean == pytest.approx(gain.mean())
    assert found.half_width < 0.1 < over_both(ours).half_width / 10
    assert found.p_value < 0.01


def test_scores_of_the_whole_set_vary_over_seeds_alone():
    corpus = [Score("d", None, ratio(), "higher", corpus=value) for value in (1.0, 2.0, 4.0)]
    zero = [Score("d", None, ratio(), "higher", corpus=0.0)] * 3
    assert over_both(corpus) == over_seeds([1.0, 2.0, 4.0])
    assert difference_over_both(corpus, zero) == difference_over_seeds(
        {0: 1.0, 1: 2.0, 2: 4.0}, dict.fromkeys(range(3), 0.0)
    )


def test_equal_models_do_not_differ():
    same = [score(np.arange(5.0)), score(np.arange(5.0) + 1)]
    found = difference_over_both(same, same)
    assert (found.mean, found.low, found.high, found.p_value) == (0.0, None, None, 1.0)
    assert difference_over_examples(same, same).p_value == 1.0


def test_variance_is_traced_to_where_it_was_put():
    draw = np.random.default_rng(9)
    shapes = {"seed": (400, 1), "examples": (1, 400), "interaction": (400, 400)}
    for name, shape in shapes.items():
        table = draw.normal(0, 1, shape) + draw.normal(0, 1e-3, (400, 400))
        shares = variance_shares([table], [0.0])
        assert vars(shares)[name] > 0.7
    noise = draw.normal(0, 1, (3, 300))
    sampled = variance_shares([noise] * 3, [1.0] * 3)
    assert sampled.sampling > 0.8
    assert variance_shares([noise], [None]).sampling is None
    assert variance_shares([noise[:1]], [0.5]).seed is None
    assert variance_shares([np.zeros((3, 4))], [0.0]) is None
    assert sum(value for value in vars(sampled).values()) == pytest.approx(1.0)
