import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from kdcli.errors import NumericsError
from kdcli.metrics.temperature_scaling import end_of_range, fit_temperature, slopes_of


def fitted(logits, labels) -> float:
    return fit_temperature(lambda beta: slopes_of(logits, labels, beta), "a test")


def nll(logits, labels, temperature) -> float:
    return -log_softmax(logits / temperature, axis=1)[np.arange(len(labels)), labels].sum()


@given(st.integers(0, 10_000), st.floats(0.1, 8.0))
def test_it_minimises_the_likelihood_as_scipy_does(seed, scale):
    draw = np.random.default_rng(seed)
    logits = draw.normal(size=(200, 5)) * scale
    labels = np.array([draw.choice(5, p=np.exp(log_softmax(row / 2.0))) for row in logits])
    theirs = minimize_scalar(
        lambda log: nll(logits, labels, math.exp(log)), bounds=(-6.9, 6.9), method="bounded", options={"xatol": 1e-9}
    )
    assert nll(logits, labels, fitted(logits, labels)) <= theirs.fun + 1e-7


def test_the_temperature_that_made_the_labels_is_found():
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(40_000, 4)) * 3
    gumbel = draw.gumbel(size=logits.shape)
    assert fitted(logits, (logits / 2.5 + gumbel).argmax(1)) == pytest.approx(2.5, rel=0.03)


def test_the_closed_form_of_two_choices():
    logits, labels = np.array([[2.0, 0.0]] * 3), np.array([0, 0, 1])
    assert fitted(logits, labels) == pytest.approx(2 / math.log(2), rel=1e-6)


def test_choices_that_a_row_lacks_change_nothing():
    logits, labels = np.array([[2.0, 0.0], [1.0, 0.0], [3.0, 0.0]]), np.array([0, 0, 1])
    wider = np.concatenate([logits, np.full((3, 2), -np.inf)], axis=1)
    assert fitted(wider, labels) == fitted(logits, labels)


def test_where_there_is_no_minimum_an_end_is_returned():
    logits = np.array([[3.0, 0.0], [1.0, 0.0]])
    assert fitted(logits, np.array([0, 0])) < 0.02
    assert fitted(logits, np.array([1, 1])) == pytest.approx(1000.0, rel=0.01)
    assert fitted(np.zeros((2, 2)), np.array([0, 1])) == 1.0


def test_a_fit_that_ends_at_its_limit_says_so():
    logits = np.array([[3.0, 0.0], [1.0, 0.0]])
    surest = fitted(np.tile([[30.0, 0.0]], (3, 1)), np.zeros(3, dtype=int))
    assert "surer is always better" in end_of_range(min(surest, 0.001))
    assert "point away from the right answers" in end_of_range(fitted(logits, np.array([1, 1])))
    assert end_of_range(fitted(logits, np.array([0, 1]))) == ""


def test_it_takes_few_passes():
    draw = np.random.default_rng(3)
    logits, asked = draw.normal(size=(300, 6)) * 4, []
    labels = (logits / 3 + draw.gumbel(size=logits.shape)).argmax(1)

    def slopes(beta):
        asked.append(beta)
        return slopes_of(logits, labels, beta)

    fit_temperature(slopes, "a test")
    assert len(asked) <= 8


def test_nan_is_one_line():
    with pytest.raises(NumericsError, match="not a number") as caught:
        fit_temperature(lambda beta: (math.nan, 1.0), "temperature scaling")
    assert caught.value.exit_code == 7
