import math
import statistics

import numpy as np
import pytest
import scipy.stats

from kdcli.errors import InputError
from kdcli.metrics.score import Score, ratio
from kdcli.statistics import (
    Estimate,
    detectable,
    difference_over_examples,
    difference_over_seeds,
    over_examples,
    over_seeds,
    sampling_noise,
    smallest_detectable_difference,
)
from kdcli.statistics.variance_components import Parts

DRAW = np.random.default_rng(0)


def means(values) -> Score:
    return Score("s", np.stack([values, np.ones(len(values))], axis=-1), ratio(), "higher")


def whole(value) -> Score:
    return Score("distinct", None, ratio(), "higher", corpus=value)


@pytest.mark.parametrize("count", [2, 3, 5, 40])
def test_seeds_have_the_t_interval_of_scipy(count):
    values = DRAW.normal(3, 2, count)
    expected = scipy.stats.t.interval(0.95, count - 1, loc=values.mean(), scale=scipy.stats.sem(values))
    ours = over_seeds(values.tolist())
    assert (ours.low, ours.high) == pytest.approx(expected, rel=1e-9)
    assert ours.std == pytest.approx(statistics.stdev(values), rel=1e-12)
    assert (ours.unit, ours.count) == ("seeds", count)
    assert ours.half_width == pytest.approx((ours.high - ours.low) / 2)


def test_one_value_has_no_interval_no_error_and_no_deviation():
    ours = over_seeds([0.3])
    assert ours == Estimate(0.3, None, None, 1, "seeds")
    assert (ours.std, ours.half_width, ours.p_value) == (None, None, None)
    assert over_examples(means([0.3])).low is None
    assert difference_over_seeds({0: 1.0}, {0: 2.0}) == Estimate(-1.0, None, None, 1, "seeds")


def test_three_seeds_are_not_bootstrapped():
    ours = over_seeds([0.30, 0.31, 0.32])
    assert (ours.low, ours.high) == pytest.approx((0.28516, 0.33484), abs=1e-5)


@pytest.mark.parametrize("count", [2, 10, 200])
def test_the_jackknife_of_a_mean_is_the_t_interval(count):
    values = DRAW.normal(size=count)
    ours = over_examples(means(values))
    expected = scipy.stats.t.interval(0.95, count - 1, loc=values.mean(), scale=scipy.stats.sem(values))
    assert (ours.low, ours.high) == pytest.approx(expected, rel=1e-9)
    assert (ours.unit, ours.count) == ("examples", count)


def test_the_jackknife_of_a_ratio_by_leaving_each_example_out():
    sums = DRAW.random((15, 2)) + 0.1
    score = Score("s", sums, lambda each: np.exp(each[..., 0] / each[..., 1]), "lower")
    left = [np.exp(np.delete(sums, i, 0)[:, 0].sum() / np.delete(sums, i, 0)[:, 1].sum()) for i in range(15)]
    error = math.sqrt(14 / 15 * sum((value - np.mean(left)) ** 2 for value in left))
    assert over_examples(score).error == pytest.approx(error, rel=1e-10)


def test_examples_without_tokens_do_not_count():
    full = means([1.0, 2.0, 4.0])
    padded = Score("s", np.concatenate([full.sums, np.zeros((5, 2))]), ratio(), "higher")
    assert over_examples(padded) == over_examples(full)
    assert difference_over_examples([padded], [padded]).count == 3


def test_a_score_of_the_whole_set_has_no_interval():
    score = Score("distinct", None, ratio(), "higher", corpus=4.0)
    assert over_examples(score) == Estimate(4.0, None, None, 1, "none")
    other = Score("distinct", None, ratio(), "higher", corpus=1.0)
    assert difference_over_examples([score], [other]) == Estimate(3.0, None, None, 1, "none")


def test_infinite_values_have_no_interval():
    assert over_seeds([1.0, math.inf]).low is None
    assert over_examples(means([1.0, math.inf, 2.0])).high is None


def test_paired_differences_over_seeds_are_the_paired_t_test():
    contender, baseline = DRAW.normal(1, 1, 6), DRAW.normal(0, 1, 6)
    ours = difference_over_seeds(dict(enumerate(contender.tolist())), dict(enumerate(baseline.tolist())))
    theirs = scipy.stats.ttest_rel(contender, baseline)
    interval = theirs.confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert ours.p_value == pytest.approx(theirs.pvalue, rel=1e-9)


def test_seeds_are_paired_by_name_not_by_position():
    ours = difference_over_seeds({2: 30.0, 0: 10.0, 7: 5.0}, {0: 9.0, 2: 28.0})
    assert (ours.mean, ours.count) == (1.5, 2)
    assert difference_over_seeds({0: 1.0}, {1: 1.0}) is None


def test_pairing_makes_a_common_hardness_cancel():
    hardness, gain = DRAW.normal(0, 10, 80), DRAW.normal(0.5, 0.1, 80)
    paired = difference_over_examples([means(hardness + gain)], [means(hardness)])
    assert paired.half_width < 0.05 < over_examples(means(hardness)).half_width / 10


def test_different_numbers_of_examples_are_refused():
    with pytest.raises(InputError, match="3 examples against 2"):
        difference_over_examples([means([1.0, 2.0, 3.0])], [means([1.0, 2.0])])


def test_equal_scores_differ_by_nothing():
    ours = difference_over_seeds({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0})
    assert (ours.mean, ours.low, ours.high, ours.p_value) == (0.0, None, None, 1.0)


@pytest.mark.parametrize("count", [3, 12])
def test_the_seed_interval_covers_the_truth_in_95_of_100_cases(count):
    draw = np.random.default_rng(count)
    estimates = [over_seeds(row.tolist()) for row in draw.normal(1.0, 2.0, (4000, count))]
    covered = np.mean([estimate.low <= 1.0 <= estimate.high for estimate in estimates])
    assert 0.93 < covered < 0.97


def test_the_example_interval_of_a_ratio_covers_the_truth_in_95_of_100_cases():
    draw = np.random.default_rng(1)
    inside = 0
    for _ in range(2000):
        tokens = draw.integers(1, 20, 60).astype(float)
        nll = tokens * 2.0 + draw.normal(0, 1, 60) * np.sqrt(tokens)
        estimate = over_examples(Score("nll", np.stack([nll, tokens], axis=-1), ratio(), "lower"))
        inside += estimate.low <= 2.0 <= estimate.high
    assert 0.93 < inside / 2000 < 0.97


def test_order_changes_nothing_to_the_last_bit():
    values = (DRAW.normal(size=200) * 10.0 ** DRAW.integers(-8, 8, 200)).tolist()
    backwards = values[::-1]
    assert over_seeds(values) == over_seeds(backwards)
    assert over_examples(means(np.array(values))) == over_examples(means(np.array(backwards)))


@pytest.mark.parametrize("count", [3, 30, 500])
def test_the_smallest_detectable_difference_is_found_with_the_promised_power(count):
    nothing = np.zeros(())
    variance = Parts(np.array(4.0 / count), nothing, nothing, nothing, (count, 10**9))
    shift = float(detectable(variance, 0.05))
    draw = np.random.default_rng(count)
    samples = draw.normal(shift, 2.0, (6000, count))
    found = np.mean(scipy.stats.ttest_1samp(samples, 0.0, axis=1).pvalue < 0.05)
    assert found == pytest.approx(0.8, abs=0.02)
    assert smallest_detectable_difference([([whole(1.0)], [whole(2.0)])]) is None


def test_several_contenders_share_the_level_of_the_smallest_detectable_difference():
    """Of many examples it is the sum of two normal quantiles; of three seeds that of a noncentral t."""
    values = np.resize([0.0, 4.0], 10**5)
    models = [([means(values)], [means(np.full(10**5, 2.0))])]
    sets = [([whole(value) for value in (1.0, 2.0, 4.0)], [whole(0.0)] * 3)]
    middle = math.sqrt(2 / scipy.stats.chi2.ppf(0.5, 2)) * statistics.stdev((1, 2, 4)) / math.sqrt(3)
    for tests in (1, 4):
        expected = scipy.stats.norm.ppf(1 - 0.05 / tests / 2) + scipy.stats.norm.ppf(0.8)
        found = smallest_detectable_difference(models, tests).size
        assert found == pytest.approx(expected * 2.0 / math.sqrt(10**5), rel=1e-3)
        shift = scipy.special.nctdtrinc(2, 0.2, scipy.stats.t.ppf(1 - 0.05 / tests / 2, 2))
        assert smallest_detectable_difference(sets, tests).size == pytest.approx(shift * middle, rel=0.02)


def test_the_sampling_of_answers_adds_the_variance_of_a_mean_of_them():
    """The answers 0, 4 and 8 have variance 16, their mean 16/3; the other example's are all the same."""
    each = np.array([[0.0, 4.0, 8.0], [1.0, 1.0, 1.0]])
    answers, score = np.stack([each, np.ones_like(each)], axis=-1), means(each.mean(1))
    assert sampling_noise([score], [answers]) == pytest.approx(8 / 3)
    assert sampling_noise([score, score], [answers, np.tile(score.sums[:, None], (1, 3, 1))]) == pytest.approx(4 / 3)
    assert sampling_noise([score, score], [answers, None]) is None
    assert sampling_noise([score], [answers[:, :1]]) is None
