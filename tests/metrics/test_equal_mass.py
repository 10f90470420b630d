import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import stdtrit
from scipy.stats import bootstrap

from kdcli.metrics.calibration import equal_mass_error
from kdcli.metrics.score import Resampler, redrawn
from kdcli.statistics import over_examples


def by_definition(confidence, correct, bins) -> float:
    bin_of = [bins * sum(other < mine for other in confidence) // len(confidence) for mine in confidence]
    gaps = dict.fromkeys(bin_of, 0.0)
    for where, sure, right in zip(bin_of, confidence, correct, strict=True):
        gaps[where] += right - sure
    return sum(abs(gap) for gap in gaps.values()) / len(confidence)


def made(count=60, examples=20, seed=0):
    draw = np.random.default_rng(seed)
    confidence = np.round(draw.random(count), 2)
    correct = (draw.random(count) < confidence * 0.8).astype(float)
    example = np.concatenate([np.arange(examples), draw.integers(0, examples, count - examples)])
    return confidence, correct, example


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=30), st.sampled_from([1, 3, 10]))
def test_it_equals_the_definition(tokens, bins):
    confidence, correct = np.array([c for c, _ in tokens]), np.array([float(right) for _, right in tokens])
    found = equal_mass_error(confidence, correct, np.arange(len(tokens)), len(tokens), bins).whole()
    assert found == pytest.approx(by_definition(confidence.tolist(), correct.tolist(), bins), abs=1e-12)


def test_a_draw_is_what_the_drawn_examples_would_have_given():
    confidence, correct, example = made()
    order = np.lexsort([*reversed([np.bincount(example, one) for one in (np.ones(60), correct, confidence)])])
    error = equal_mass_error(confidence, correct, example, 20, 5)
    for seed in range(5):
        drawn = np.random.default_rng(seed).multinomial(20, np.full(20, 1 / 20))
        taken = [
            token
            for rank, times in enumerate(drawn)
            for _ in range(times)
            for token in np.flatnonzero(example == order[rank])
        ]
        expected = by_definition(confidence[taken].tolist(), correct[taken].tolist(), 5)
        assert error.value(drawn[None].astype(float))[0] == pytest.approx(expected, abs=1e-12)


def test_many_draws_are_taken_in_parts(monkeypatch):
    confidence, correct, example = made()
    draws = np.random.default_rng(1).integers(0, 3, (50, 20)).astype(float) + 0.0
    whole = equal_mass_error(confidence, correct, example, 20, 5).value(draws)
    monkeypatch.setattr("kdcli.metrics.calibration._AT_ONCE", 200)
    assert equal_mass_error(confidence, correct, example, 20, 5).value(draws).tolist() == whole.tolist()


def test_the_standard_error_is_scipys_and_the_interval_holds_the_value():
    confidence, correct, example = made(400, 100)
    redraw = equal_mass_error(confidence, correct, example, 100, 10)
    score = redrawn("e", redraw)
    estimate = over_examples(score)
    assert estimate.unit == "examples"
    assert estimate.count == 100

    def statistic(index):
        return redraw.value(np.bincount(index.astype(int), minlength=100)[None].astype(float))[0]

    theirs = bootstrap(
        (np.arange(100),), statistic, vectorized=False, n_resamples=1999, method="percentile",
        rng=np.random.default_rng(20_260_101),
    )  # fmt: skip
    half = theirs.standard_error * stdtrit(99, 0.975)
    assert (estimate.low, estimate.high) == pytest.approx((score.value - half, score.value + half), abs=1e-12)


def test_the_interval_holds_a_value_that_nearly_all_draws_exceed():
    """A calibrated model of many classes: quantiles of the draws all lie above the score."""
    draw = np.random.default_rng(3)
    probability = draw.dirichlet(np.ones(8), 300)
    right = np.array([draw.choice(8, p=row) for row in probability])
    errors = [
        equal_mass_error(p, (right == i).astype(float), np.arange(300), 300, 10) for i, p in enumerate(probability.T)
    ]
    redraw = Resampler(lambda drawn: np.mean([one.value(drawn) for one in errors], axis=0), 300)
    estimate = over_examples(redrawn("ace", redraw))
    draws = draw.multinomial(300, np.full(300, 1 / 300), 200).astype(float)
    assert (redraw.value(draws) > redraw.whole()).mean() > 0.95
    assert estimate.low is not None
    assert estimate.high is not None
    assert estimate.low < redraw.whole() < estimate.high


def test_one_example_has_no_interval():
    score = redrawn("e", equal_mass_error(np.array([0.5]), np.array([1.0]), np.array([0]), 1, 10))
    assert score.value == 0.5
    assert over_examples(score).low is None
