import numpy as np
import pytest
from scipy.stats import binomtest, norm

from kdcli.metrics.calibration import Calibration, bin_sums, calibration_error, equal_mass_series, equal_width_series


def made(count=400, seed=0):
    draw = np.random.default_rng(seed)
    confidence = draw.random(count)
    return confidence, (draw.random(count) < confidence).astype(float), np.arange(count)


def test_bars_hold_count_confidence_accuracy_and_edges_of_each_bin():
    confidence, correct, example = made()
    found = equal_width_series("a", bin_sums(confidence, correct, example, 400, 4))
    inside = (confidence >= 0.25) & (confidence < 0.5)
    assert (found.left[1], found.right[1], found.count[1]) == (0.25, 0.5, inside.sum())
    assert found.x[1] == pytest.approx(confidence[inside].mean())
    assert found.y[1] == pytest.approx(correct[inside].mean())
    gaps = np.abs(np.array(found.x) - np.array(found.y)) * np.array(found.count)
    assert gaps.sum() / 400 == pytest.approx(calibration_error(bin_sums(confidence, correct, example, 400, 4).sum(0)))


def test_empty_bins_are_left_out():
    found = equal_width_series("a", bin_sums(np.array([0.95]), np.array([1.0]), np.array([0]), 1, 10))
    assert (found.left, found.right, found.y) == ((0.9,), (1.0,), (1.0,))


def test_the_interval_of_independent_predictions_is_wilsons():
    confidence, correct = np.full(50, 0.5), np.array([1.0] * 20 + [0.0] * 30)
    found = equal_width_series("a", bin_sums(confidence, correct, np.arange(50), 50, 1))
    theirs = binomtest(20, 50).proportion_ci(method="wilson")
    assert (found.low[0], found.high[0]) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_predictions_of_one_example_count_as_what_they_tell():
    confidence, correct = np.full(50, 0.5), np.array([1.0] * 20 + [0.0] * 30)
    apart = equal_width_series("a", bin_sums(confidence, correct, np.arange(50), 50, 1))
    together = equal_width_series("a", bin_sums(confidence, correct, np.arange(50) // 10, 5, 1))
    assert together.y == apart.y
    assert together.high[0] - together.low[0] > 2 * (apart.high[0] - apart.low[0])


def test_five_examples_each_of_one_mind_tell_as_much_as_four_predictions():
    """Wilson's ends p solve (p - y)^2 = z^2 p (1 - p) / n; here n = y (1 - y) 50^2 / (5/4 sum (right - 10 y)^2) = 4."""
    correct = np.array([1.0] * 20 + [0.0] * 30)
    found = equal_width_series("a", bin_sums(np.full(50, 0.5), correct, np.arange(50) // 10, 5, 1))
    for end in (found.low[0], found.high[0]):
        assert (end - 0.4) ** 2 == pytest.approx(norm.ppf(0.975) ** 2 * end * (1 - end) / 4, rel=1e-9)


def test_examples_that_balance_themselves_tell_no_more_than_their_predictions():
    correct = np.array([1.0, 0.0, 1.0, 0.0, 1.0, 1.0])
    found = equal_width_series("a", bin_sums(np.full(6, 0.5), correct, np.arange(6) // 2, 3, 1))
    theirs = binomtest(4, 6).proportion_ci(method="wilson")
    assert (found.low[0], found.high[0]) == pytest.approx((theirs.low, theirs.high), rel=1e-9)


def test_bars_that_are_all_right_or_all_wrong_keep_an_interval():
    for outcome in (0.0, 1.0):
        found = equal_width_series("a", bin_sums(np.full(9, 0.5), np.full(9, outcome), np.arange(9), 9, 1))
        assert found.low[0] <= outcome <= found.high[0]
        assert 0.1 < found.high[0] - found.low[0] < 0.5


def test_equal_mass_bars_span_their_confidences():
    confidence, correct, example = made()
    found = equal_mass_series("a", confidence, correct, example, 400, 8)
    assert found.count == (50.0,) * 8
    ordered = np.sort(confidence).reshape(8, 50)
    assert found.left == tuple(ordered[:, 0])
    assert found.right == tuple(ordered[:, -1])


def test_the_metric_gives_one_diagram_with_both_binnings():
    facts = {"top1_prob": np.array([0.25, 0.75]), "top1_correct": np.array([0.0, 1.0])}
    (curve,) = Calibration().curves(facts, np.array([0, 1]), 2)
    assert (curve.name, curve.kind) == ("reliability_tokens", "reliability")
    assert [one.label for one in curve.series] == ["equal width", "equal mass"]
