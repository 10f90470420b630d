"""Logistic regression by Newton's method against a general optimizer, and on words."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from kdcli.classifiers.logistic import fit_logistic, newton


@pytest.mark.parametrize(("classes", "penalty"), [(2, 1.0), (3, 0.3), (5, 10.0)])
def test_newton_finds_what_a_general_optimizer_finds(classes, penalty):
    draw = np.random.default_rng(classes)
    x, y = draw.poisson(0.8, (80, 6)).astype(float), draw.integers(0, classes, 80)
    wide, free = np.hstack([x, np.ones((80, 1))]), np.array([[penalty]] * 6 + [[0.0]])

    def value_and_gradient(flat):
        weights = flat.reshape(7, classes)
        logits = wide @ weights
        value = -log_softmax(logits, axis=1)[np.arange(80), y].sum() + 0.5 * (free * weights**2).sum()
        gradient = wide.T @ (softmax(logits, axis=1) - np.eye(classes)[y]) + free * weights
        return value, gradient.ravel()

    found = newton(x, y, classes, penalty)
    other = minimize(value_and_gradient, np.zeros(7 * classes), jac=True, method="BFGS", options={"gtol": 1e-9})
    assert found == pytest.approx(other.x.reshape(7, classes), abs=1e-6)
    assert np.linalg.norm(value_and_gradient(found.ravel())[1]) < 1e-6


def test_it_learns_words_and_leaves_rare_ones_out():
    texts = ["cat here", "dog here", "cat there", "dog there"] * 6 + ["once"]
    found = fit_logistic(texts, [0, 1, 0, 1] * 6 + [0], ("c", "d"))
    assert set(found.words) == {"cat", "dog", "here", "there"}
    logits = found.class_logits(["a cat", "my dog"], ["", ""], 9)
    assert logits.argmax(1).tolist() == [0, 1]
    assert found.parameters == 5 * 2
