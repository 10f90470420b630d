"""Multinomial logistic regression on word counts, by Newton's method: what a tiny classifier has to beat."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcli.classifiers.tiny import words_of

Array = NDArray[np.float64]

PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Those that are tried on the rows held out."""

_HELD_OUT = 10
_RARE = 2
_STEPS, _INNER, _HALVINGS = 100, 500, 40
_SMALL, _ROUGH = 1e-10, 1e-3


def newton(counts: Any, classes: NDArray[np.int64], number: int, penalty: float, *, small: float = _SMALL) -> Array:
    """Return the weights ``[features + 1, classes]`` that minimise the penalised negative log-likelihood; bias last.

    ``sum_i -log q_i(y_i) + penalty / 2 ||W||^2`` with ``q = softmax(x W + b)``; the bias is not penalised. Each
    Newton direction is found by conjugate gradients, so that the Hessian is never built; steps are halved until the
    value falls.

    Args:
        counts: features of each row, a dense or sparse matrix ``[rows, features]``.
        classes: of each row, ``[rows]``.
        number: of classes.
        penalty: of the squared weights, above 0.
        small: share of the first gradient's length below which the last one is taken for 0.

    Source: Bohning 1992, Multinomial logistic regression algorithm; Hestenes and Stiefel 1952.

    >>> found = newton(np.array([[1.0], [0.0]]), np.array([0, 1]), 2, 1.0)
    >>> bool(found[0, 0] > 0 > found[0, 1])
    True
    """
    from scipy.sparse import csr_matrix, hstack

    x: Any = csr_matrix(hstack([csr_matrix(counts), csr_matrix(np.ones((len(classes), 1)))]))
    back, target = x.T.tocsr(), np.eye(number)[classes]
    strength = np.full((x.shape[1], 1), penalty)
    strength[-1] = 0.0
    weights = np.zeros((x.shape[1], number))
    value, first = _value(x, weights, target, strength), None
    for _ in range(_STEPS):
        p = _softmax(x @ weights)
        gradient = back @ (p - target) + strength * weights
        size = float(np.linalg.norm(gradient))
        first = first or size
        if size <= small * first:
            break
        direction = _solve(x, back, p, strength, -gradient, min(0.1, (size / first) ** 0.5) * size)
        slope, step = float((gradient * direction).sum()), 1.0
        for _ in range(_HALVINGS):
            tried = _value(x, weights + step * direction, target, strength)
            if tried <= value + 1e-4 * step * slope:
                break
            step /= 2
        else:
            break  # nothing falls any more: as exact as these numbers can be
        weights, value = weights + step * direction, tried
    return weights


def _solve(x: Any, back: Any, p: Array, strength: Array, right: Array, tolerance: float) -> Array:
    """Solve the Hessian's system by conjugate gradients to a residual of the tolerance."""
    found, rest = np.zeros_like(right), right.copy()
    way, size = rest.copy(), float((rest * rest).sum())
    for _ in range(_INNER):
        if size**0.5 <= tolerance:
            break
        moved = x @ way
        bent = back @ (p * (moved - (p * moved).sum(1, keepdims=True))) + strength * way
        share = size / float((way * bent).sum())
        found += share * way
        rest -= share * bent
        before, size = size, float((rest * rest).sum())
        way = rest + (size / before) * way
    return found


def _value(x: Any, weights: Array, target: Array, strength: Array) -> float:
    logits = x @ weights
    high = logits.max(1, keepdims=True)
    norm = high[:, 0] + np.log(np.exp(logits - high).sum(1))
    return float((norm - (logits * target).sum(1)).sum() + 0.5 * (strength * weights * weights).sum())


def _softmax(logits: Array) -> Array:
    raised = np.exp(logits - logits.max(1, keepdims=True))
    return raised / raised.sum(1, keepdims=True)


@dataclass(frozen=True, eq=False)
class LogisticRegression:
    """A fitted regression, as a reader of texts.

    Args:
        labels: the classes.
        words: word -> column.
        weights: ``[words + 1, classes]``, the bias last.
        penalty: of the squared weights, as it was chosen.
    """

    labels: tuple[str, ...]
    words: dict[str, int]
    weights: Array
    penalty: float

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        return self.weights.size

    def class_logits(self, texts: Sequence[str], where: Sequence[str], longest: int) -> Array:
        """Return logits ``[texts, classes]``; texts are read whole."""
        return counts_of(texts, self.words) @ self.weights[:-1] + self.weights[-1]


def counts_of(texts: Sequence[str], words: dict[str, int]) -> Any:
    """Return how often each text has each word, a sparse matrix ``[texts, words]``."""
    from scipy.sparse import csr_matrix

    rows, columns, values = [], [], []
    for row, text in enumerate(texts):
        for word, count in Counter(words_of(text)).items():
            if word in words:
                rows.append(row)
                columns.append(words[word])
                values.append(float(count))
    return csr_matrix((values, (rows, columns)), shape=(len(texts), len(words)))


def fit_logistic(texts: Sequence[str], classes: Sequence[int], labels: Sequence[str]) -> LogisticRegression:
    """Fit a regression on the words that occur in two texts or more.

    The penalty is that of ``PENALTIES`` by which every tenth row, held out, is likeliest; then all rows are fitted.

    Args:
        texts: of the training rows.
        classes: of each.
        labels: names of the classes.
    """
    seen = Counter(word for text in texts for word in set(words_of(text)))
    words = {word: column for column, word in enumerate(sorted(w for w, count in seen.items() if count >= _RARE))}
    x, y, number = counts_of(texts, words), np.asarray(classes, dtype=np.int64), len(labels)
    held = np.arange(len(y)) % _HELD_OUT == 0
    best = PENALTIES[len(PENALTIES) // 2]
    if held.any() and not held.all():
        losses = {one: _loss(_roughly(x[~held], y[~held], number, one), x[held], y[held]) for one in PENALTIES}
        best = min(losses, key=lambda one: losses[one])
    return LogisticRegression(tuple(labels), words, newton(x, y, number, best), best)


def _roughly(x: Any, y: NDArray[np.int64], number: int, penalty: float) -> Array:
    return newton(x, y, number, penalty, small=_ROUGH)


def _loss(weights: Array, x: Any, y: NDArray[np.int64]) -> float:
    return -float(np.log(_softmax(x @ weights[:-1] + weights[-1])[np.arange(len(y)), y] + 1e-300).mean())


def logistic_digest(rows: str) -> str:
    """Return what identifies the regression fitted on some rows.

    Args:
        rows: the digest of their texts and classes.
    """
    return hashlib.sha256(f"logistic regression {PENALTIES} {rows}".encode()).hexdigest()
