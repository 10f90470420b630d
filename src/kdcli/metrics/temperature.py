"""The one temperature that makes probabilities fit held-out answers best."""

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from kdcli.errors import NumericsError
from kdcli.metrics.score import Array

Slopes: TypeAlias = Callable[[float], tuple[float, float]]
"""From ``beta = 1/T`` to the first and second derivative of the negative log-likelihood summed over all answers."""

_LOWEST, _HIGHEST = 1e-3, 1e3
_STEPS = 60
_CLOSE = 1e-5


def fit_temperature(slopes: Slopes, where: str) -> float:
    """Return the temperature that minimises the negative log-likelihood of development answers.

    ``sum_i -log softmax(z_i / T)[y_i]`` is convex in ``beta = 1/T`` (Guo et al. 2017, section 4.2); its
    derivatives are ``sum_i (E_q[z] - z_y)`` and ``sum_i Var_q[z]``. Newton's method from T = 1 within a
    bracket that halves where a step leaves it; every evaluation may be a pass over data.

    Args:
        slopes: the two derivatives at a beta.
        where: what is fitted, for messages.

    Returns:
        T between 0.001 and 1000; those ends where the likelihood has no minimum between them, as when
        every answer is right or every answer is wrong.

    Raises:
        NumericsError: a derivative is not a number.

    >>> round(fit_temperature(lambda beta: (beta - 0.5, 1.0), "a parabola"), 6)
    2.0
    """
    low, high, beta = 1.0 / _HIGHEST, 1.0 / _LOWEST, 1.0
    for _ in range(_STEPS):
        first, second = slopes(beta)
        if not (math.isfinite(first) and math.isfinite(second)):
            what = "the development answers' likelihood is not a number"
            raise NumericsError("METRIC-05", what, where=where, fix="look at the model's logits")
        if first == 0.0:
            break
        low, high = (low, beta) if first > 0.0 else (beta, high)
        step = beta - first / second if second > 0.0 else math.inf if first < 0.0 else -math.inf
        nearer = step if low < step < high else math.sqrt(low * high)
        if abs(math.log(nearer / beta)) < _CLOSE:
            beta = nearer
            break
        beta = nearer
    return 1.0 / beta


def end_of_range(temperature: float) -> str:
    """Say so where a fitted temperature is an end of its range, for then there is no best one; else nothing.

    >>> end_of_range(1.2), end_of_range(1000.0)[:26]
    ('', 'the fit ended at its limit')
    """
    if temperature >= 0.99 * _HIGHEST:
        return (
            "the fit ended at its limit: on the development rows the model's scores point away from the right answers"
        )
    if temperature <= 1.01 * _LOWEST:
        return "the fit ended at its limit: every development row was answered right, and surer is always better"
    return ""


def slopes_of(logits: Array, labels: np.ndarray, beta: float) -> tuple[float, float]:
    """Return both derivatives of the summed negative log-likelihood at ``beta = 1/T``.

    Args:
        logits: ``[n, v]``; minus infinity for what cannot be chosen.
        labels: index of the right answer, ``[n]``.
        beta: inverse temperature.

    >>> slopes_of(np.array([[0.0, 2.0]]), np.array([1]), 0.0)
    (-1.0, 1.0)
    """
    top = logits.max(-1, keepdims=True)
    shifted = np.where(np.isfinite(logits), logits - top, 0.0)
    weight = np.where(np.isfinite(logits), np.exp(beta * shifted), 0.0)
    q = weight / weight.sum(-1, keepdims=True)
    mean = (q * shifted).sum(-1)
    variance = (q * (shifted - mean[:, None]) ** 2).sum(-1)
    chosen = shifted[np.arange(len(labels)), labels]
    return math.fsum(mean - chosen), math.fsum(variance)
