"""The paired bootstrap and permutation test over examples, against scipy and in simulation."""

import numpy as np
import pytest
import scipy.stats

from kdcli.metrics.calibration import calibration_error
from kdcli.metrics.score import Score, ratio
from kdcli.statistics import difference_over_examples
from kdcli.statistics.bootstrap import Pairs, bca_interval, permutation_p


def score(values, weights=None) -> Score:
    weights = np.ones(len(values)) if weights is None else weights
    return Score("s", np.stack([values * weights, weights], axis=-1), ratio(), "higher")


def pairs(ours, theirs) -> Pairs:
    return Pairs([score(ours)], [score(theirs)], np.ones(len(ours), dtype=bool))


def test_the_interval_is_scipys_bca_of_the_differences():
    draw = np.random.default_rng(0)
    ours, theirs = draw.exponential(1.2, 60), draw.exponential(1.0, 60)
    theirs_interval = scipy.stats.bootstrap(
        (ours - theirs,), np.mean, n_resamples=9999, method="BCa", rng=np.random.default_rng(1)
    ).confidence_interval
    assert bca_interval(pairs(ours, theirs)) == pytest.approx(tuple(theirs_interval), abs=0.02)


def test_no_simpler_bootstrap_gives_the_same_interval():
    """BCa from its definition, with its bias and acceleration; on skewed scores the other intervals are elsewhere."""
    draw = np.random.default_rng(8)
    ours, theirs = draw.exponential(4.0, 160), draw.exponential(0.5, 160)
    change = ours - theirs
    draws = np.sort(change[draw.integers(0, 160, (30_000, 160))].mean(1))
    bias = scipy.stats.norm.ppf(np.mean(draws < change.mean()))
    left_out = (change.sum() - change) / 159
    apart = left_out.mean() - left_out
    acceleration = (apart**3).sum() / (6 * (apart**2).sum() ** 1.5)
    tails = bias + scipy.stats.norm.ppf([0.025, 0.975])
    places = scipy.stats.norm.cdf(bias + tails / (1 - acceleration * tails))
    expected, percentile = np.quantile(draws, places), np.quantile(draws, [0.025, 0.975])
    spread = percentile[1] - percentile[0]
    found = difference_over_examples([score(ours)], [score(theirs)])
    for interval in (bca_interval(pairs(ours, theirs)), (found.low, found.high)):
        assert np.array(interval) == pytest.approx(expected, abs=0.02 * spread)
    assert percentile != pytest.approx(expected, abs=0.04 * spread)
    assert 2 * change.mean() - percentile[::-1] != pytest.approx(expected, abs=0.04 * spread)


@pytest.mark.parametrize("count", [8, 13, 14, 100])
def test_the_p_value_is_scipys_permutation_test(count):
    draw = np.random.default_rng(count)
    ours, theirs = draw.normal(0.3, 1, count), draw.normal(0, 1, count)
    theirs_p = scipy.stats.permutation_test(
        (ours, theirs), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples",
        n_resamples=20_000, vectorized=True, rng=np.random.default_rng(1),
    ).pvalue  # fmt: skip
    assert permutation_p(pairs(ours, theirs)) == pytest.approx(theirs_p, abs=0.02 if count > 13 else 1e-9)


def test_the_p_value_of_a_table_comes_again_whatever_draws_the_swaps():
    """Swaps drawn otherwise would change the p-values of tables that are made again from their parquet files."""
    draw = np.random.default_rng(5)
    assert permutation_p(pairs(draw.normal(0.4, 1, 30), draw.normal(0, 1, 30))) == 0.1479


def test_what_was_seen_counts_among_the_swaps_so_that_no_p_value_is_zero():
    draw = np.random.default_rng(1)
    assert permutation_p(pairs(draw.normal(9, 1, 40), draw.normal(0, 1, 40))) == 1 / 10_000


def test_a_ratio_is_resampled_by_its_sums():
    draw = np.random.default_rng(2)
    weights = draw.integers(1, 30, 120).astype(float)
    ours = score(draw.normal(2.0, 1, 120), weights)
    theirs = score(draw.normal(1.9, 1, 120), weights)
    found = difference_over_examples([ours], [theirs])
    index = draw.integers(0, 120, (4000, 120))
    means = [(one.sums[index, 0].sum(1) / one.sums[index, 1].sum(1)) for one in (ours, theirs)]
    assert (found.low, found.high) == pytest.approx(np.quantile(means[0] - means[1], [0.025, 0.975]), abs=0.05)


def test_several_seeds_are_resampled_together():
    draw = np.random.default_rng(3)
    hardness = draw.normal(0, 1, 100)
    ours = [score(hardness + 0.2 + 0.01 * draw.normal(size=100)) for _ in range(3)]
    theirs = [score(0.01 * draw.normal(size=100)) for _ in range(3)]
    together = difference_over_examples(ours, theirs)
    alone = difference_over_examples(ours[:1], theirs[:1])
    assert together.half_width == pytest.approx(alone.half_width, rel=0.05)
    assert together.p_value == pytest.approx(alone.p_value, abs=0.02)


def test_it_gives_the_same_numbers_again():
    draw = np.random.default_rng(4)
    ours, theirs = [score(draw.normal(size=50))], [score(draw.normal(size=50))]
    assert difference_over_examples(ours, theirs) == difference_over_examples(ours, theirs)


def test_a_score_that_is_no_mean_is_resampled_too():
    draw = np.random.default_rng(5)

    def one(shift):
        sums = np.zeros((80, 10, 3))
        sums[..., 0] = draw.integers(1, 9, (80, 10))
        sums[..., 1] = sums[..., 0] * 0.5
        sums[..., 2] = draw.binomial(sums[..., 0].astype(int), 0.5 + shift)
        return Score("ece", sums.reshape(80, 30), calibration_error, "lower")

    found = difference_over_examples([one(0.2)], [one(0.0)])
    assert found.low > 0.1
    assert found.p_value < 0.001


def test_identical_contenders_have_uniform_p_values_and_planted_differences_are_found():
    draw = np.random.default_rng(6)
    null = [permutation_p(pairs(*draw.normal(0, 1, (2, 30)))) for _ in range(400)]
    assert np.mean(np.array(null) <= 0.05) == pytest.approx(0.05, abs=0.03)
    assert scipy.stats.kstest(null, "uniform").pvalue > 0.01
    planted = [permutation_p(pairs(draw.normal(1, 1, 30), draw.normal(0, 1, 30))) for _ in range(50)]
    assert np.mean(np.array(planted) < 0.05) > 0.8
    wrong = [
        scipy.stats.binomtest(int((draw.normal(0, 1, 30) + draw.normal() > 0).sum()), 30).pvalue for _ in range(400)
    ]
    assert scipy.stats.kstest(wrong, "uniform").pvalue < 1e-6


def test_the_interval_covers_the_truth():
    draw, inside = np.random.default_rng(7), 0
    for _ in range(200):
        ends = bca_interval(pairs(draw.exponential(1, 60), draw.exponential(1, 60)))
        inside += ends[0] <= 0.0 <= ends[1]
    assert 0.90 <= inside / 200 <= 0.99


def test_differences_that_do_not_vary_have_no_bootstrap():
    found = difference_over_examples([score(np.arange(5.0) + 1.0)], [score(np.arange(5.0))])
    assert found.mean == 1.0
    assert 0.0 < found.low < 0.5 < 1.5 < found.high < 2.0
    assert found.p_value == pytest.approx(2 / 2**5)
