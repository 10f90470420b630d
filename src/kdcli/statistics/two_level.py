"""Means over training seeds and examples together: what another seed and other examples would give.

A table ``[seeds, examples]`` of values, or of paired differences, is read as a sum of a mean, an
effect of the seed, an effect of the example, and a rest. Two independent parts make up the variance
of its mean: what the seeds' own means show, on ``seeds - 1`` degrees of freedom, and what the
examples add to that. Satterthwaite's interval for such a sum covers too little with three seeds,
Banerjee's never too little but often too much; a weighted mean of their squares covers 95 % where
95 % is asked for, and comes close to Banerjee's where a correction for many tests asks for more.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit

from kdcli.statistics.estimate import CONFIDENCE, LEVEL, Array, Estimate

BANERJEE_SHARE = 0.4
"""Weight of Banerjee's squared half-width at a level of 5 % and above; it grows to 1 as the level falls to 0."""

_HALVINGS = 60


@dataclass(frozen=True)
class Parts:
    """The variance of a table's mean, in its two independent parts.

    Args:
        seeds: mean square between seeds over all cells, ``[...]``; rest of the cells included.
        examples: what the examples add to it, ``[...]``, not below 0.
        rest: the rest's share in ``seeds``, ``[...]``.
        shape: number of seeds and of examples.
    """

    seeds: Array
    examples: Array
    rest: Array
    shape: tuple[int, int]

    @property
    def total(self) -> Array:
        """Variance of the mean, ``[...]``."""
        return np.asarray(self.seeds + self.examples)

    def half_width(self, level: float | Array) -> Array:
        """Return half the interval that errs with this probability, ``[...]``."""
        tail = 1.0 - np.asarray(level) / 2
        share = np.maximum(1.0 - np.asarray(level) * (1.0 - BANERJEE_SHARE) / LEVEL, BANERJEE_SHARE)
        of_seeds, of_examples = self.shape[0] - 1, self.shape[1] - 1
        low, high = stdtrit(of_seeds, tail), stdtrit(of_examples, tail)
        banerjee = low**2 * self.seeds + high**2 * self.examples
        satterthwaite = stdtrit(self._freedom(), tail) ** 2 * self.total
        return np.asarray(np.sqrt(share * banerjee + (1 - share) * satterthwaite))

    def p_value(self, mean: Array) -> Array:
        """Return the level at which the interval around each mean just reaches zero, ``[...]``."""
        low, high = np.zeros_like(self.total), np.ones_like(self.total)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            reaches = self.half_width(middle) >= np.abs(mean)
            low, high = np.where(reaches, middle, low), np.where(reaches, high, middle)
        certain = np.where(np.asarray(mean) == 0.0, 1.0, 0.0)
        return np.asarray(np.where(self.total == 0.0, certain, (low + high) / 2))

    def _freedom(self) -> Array:
        squares = self.seeds**2 / (self.shape[0] - 1) + self.examples**2 / (self.shape[1] - 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            found = self.total**2 / squares
        return np.asarray(np.where(squares == 0.0, 1.0, np.maximum(found, 1.0)))


def split(table: Array) -> Parts:
    """Return where the variance of a table's mean comes from.

    Args:
        table: values ``[..., seeds, examples]``, at least two of each.

    >>> split(np.array([[1.0, 2.0], [3.0, 4.0]])).seeds.item()
    1.0
    """
    seeds, examples = table.shape[-2:]
    mean = table.mean((-2, -1), keepdims=True)
    by_seed, by_example = table.mean(-1, keepdims=True) - mean, table.mean(-2, keepdims=True) - mean
    rest = table - mean - by_seed - by_example
    cells = seeds * examples
    of_seeds = examples * (by_seed**2).sum((-2, -1)) / (seeds - 1) / cells
    of_examples = seeds * (by_example**2).sum((-2, -1)) / (examples - 1) / cells
    of_rest = (rest**2).sum((-2, -1)) / ((seeds - 1) * (examples - 1)) / cells
    both = np.maximum(of_examples - of_rest, 0.0)
    return Parts(np.asarray(of_seeds), np.asarray(both), np.asarray(of_rest), (seeds, examples))


def two_level(mean: float, table: Array, *, difference: bool = False) -> Estimate:
    """Estimate a mean over seeds and examples drawn at random, both.

    Args:
        mean: the number itself; for a ratio it need not be the mean of the table.
        table: values ``[seeds, examples]``, at least two of each; jackknife values for a ratio.
        difference: whether to test it against zero.
    """
    parts = split(table)
    half = float(parts.half_width(1.0 - CONFIDENCE))
    p_value = float(parts.p_value(np.array(mean))) if difference else None
    error = math.sqrt(float(parts.total))
    freedom = _freedom(half / error) if error > 0 else float(parts.shape[0] - 1)
    return Estimate(mean, mean - half, mean + half, parts.shape[0], "seeds and examples", error, p_value, freedom)


def _freedom(quantile: float) -> float:
    """Return the degrees of freedom whose t quantile this is."""
    low, high = 0.1, 1e9
    for _ in range(_HALVINGS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if stdtr(middle, quantile) < 0.5 + CONFIDENCE / 2 else (low, middle)
    return math.sqrt(low * high)
