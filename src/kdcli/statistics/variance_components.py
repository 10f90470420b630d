"""Two-level intervals: variance components of training seeds and examples.

A table ``[seeds, examples]`` of values, or of paired differences, is read as a sum of a mean, an
effect of the seed, an effect of the example, and a rest. Two independent parts make up the variance
of its mean: what the seeds' own means show, on ``seeds - 1`` degrees of freedom, and what the
examples add to that. Satterthwaite's interval for such a sum covers too little with three seeds,
Banerjee's never too little but often too much; a weighted mean of their squares covers 95 % where
95 % is asked for, and comes close to Banerjee's where a correction for many tests asks for more.

Two or three seeds often agree by chance, above all where scores lie on a lattice: their variance is
then estimated as 0. The interval is therefore never shorter than the one over the examples with these
seeds held fixed: what these trained models do not show, their objectives do not show either. And it is
never shorter than with two more examples, one for either side, that differ as much as those that do.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from kdcli.bounded import ANYWHERE, Bounds
from kdcli.statistics.estimate import CONFIDENCE, LEVEL, Array, Estimate, ends

BANERJEE_SHARE = 0.4
"""Weight of Banerjee's squared half-width at a level of 5 % and above; it grows to 1 as the level falls to 0."""

_HALVINGS = 60

_ROUNDING = 1e-18
"""Squared differences below this part of the squared values are rounding."""


@dataclass(frozen=True)
class Parts:
    """The variance of a table's mean, in its two independent parts.

    Args:
        seeds: mean square between seeds over all cells, ``[...]``; rest of the cells included.
        examples: what the examples add to it, ``[...]``, not below 0.
        rest: the rest's share in ``seeds``, ``[...]``.
        fixed: variance of the mean if these seeds are held fixed, ``[...]``.
        shape: number of seeds and of examples.
    """

    seeds: Array
    examples: Array
    rest: Array
    fixed: Array
    shape: tuple[int, int]

    @property
    def total(self) -> Array:
        """Variance of the mean, ``[...]``."""
        return np.asarray(self.seeds + self.examples)

    def half_width(self, level: float | Array) -> Array:
        """Return half the interval that errs with this probability, ``[...]``."""
        from scipy.special import stdtrit

        tail = np.asarray(level) / 2
        of_seeds, of_examples = self.shape[0] - 1, self.shape[1] - 1
        high = -stdtrit(of_examples, tail)
        if not of_seeds:
            return np.asarray(high * np.sqrt(self.fixed))
        share = np.maximum(1.0 - np.asarray(level) * (1.0 - BANERJEE_SHARE) / LEVEL, BANERJEE_SHARE)
        banerjee = stdtrit(of_seeds, tail) ** 2 * self.seeds + high**2 * self.examples
        satterthwaite = stdtrit(self._freedom(), tail) ** 2 * self.total
        both = share * banerjee + (1 - share) * satterthwaite
        return np.asarray(np.sqrt(np.maximum(both, high**2 * self.fixed)))

    def p_value(self, mean: Array) -> Array:
        """Return the level at which the interval around each mean just reaches zero, ``[...]``."""
        low, high = np.zeros(np.shape(self.total)), np.ones(np.shape(self.total))
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            reaches = self.half_width(middle) >= np.abs(mean)
            low, high = np.where(reaches, middle, low), np.where(reaches, high, middle)
        return np.asarray((low + high) / 2)

    def _freedom(self) -> Array:
        squares = self.seeds**2 / (self.shape[0] - 1) + self.examples**2 / (self.shape[1] - 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            found = self.total**2 / squares
        return np.asarray(np.where(squares == 0.0, 1.0, np.maximum(found, 1.0)))


def split(table: Array) -> Parts:
    """Return where the variance of a table's mean comes from.

    Args:
        table: values ``[..., seeds, examples]``, at least two examples.

    >>> split(np.array([[1.0, 2.0], [3.0, 4.0]])).seeds.item()
    1.0
    """
    seeds, examples = table.shape[-2:]
    mean = table.mean((-2, -1), keepdims=True)
    by_example = table.mean(-2, keepdims=True) - mean
    cells = seeds * examples
    of_examples = np.asarray(seeds * (by_example**2).sum((-2, -1)) / (examples - 1) / cells)
    if seeds == 1:
        nothing = np.zeros_like(of_examples)
        return Parts(nothing, of_examples, nothing, of_examples, (seeds, examples))
    by_seed = table.mean(-1, keepdims=True) - mean
    rest = table - mean - by_seed - by_example
    of_seeds = examples * (by_seed**2).sum((-2, -1)) / (seeds - 1) / cells
    of_rest = (rest**2).sum((-2, -1)) / ((seeds - 1) * (examples - 1)) / cells
    both = np.maximum(of_examples - of_rest, 0.0)
    return Parts(np.asarray(of_seeds), np.asarray(both), np.asarray(of_rest), of_examples, (seeds, examples))


def split_difference(table: Array, reach: float = math.inf) -> Parts:
    """Return the same for paired differences, with two more examples of the size of those that differ.

    Of 0/1 scores of which k examples differ, all for one side, z is then k / sqrt(k + 2), close to the exact
    sign test; of smooth scores the two examples hardly count.

    Args:
        table: differences ``[..., seeds, examples]``, at least two examples.
        reach: largest difference that the score can have, the size where no example differs.

    Source: Bonett and Price 2012, Adjusted Wald confidence interval for a difference of binomial proportions
    based on paired data.

    >>> one = split_difference(np.array([[0.0] * 99 + [1.0]] * 2))
    >>> round(0.01 / float(one.fixed) ** 0.5, 2)
    0.58
    """
    parts, examples = split(table), table.shape[-1]
    size = _typical_square(table.mean(-2))
    size = np.where(size == 0.0, reach**2 if reach < math.inf else 0.0, size)
    return replace(parts, fixed=np.asarray(parts.fixed + 2.0 * size / (examples * (examples - 1))))


def _typical_square(means: Array) -> Array:
    """Return the squared size of those among ``[..., examples]`` that differ from the others; of all if none does."""
    apart = np.square(means - means.mean(-1, keepdims=True))
    squares = np.square(means).sum(-1)
    total = apart.sum(-1)
    varies = total > _ROUNDING * squares
    typical = np.square(apart).sum(-1) / np.where(varies, total, 1.0)
    return np.asarray(np.where(varies, typical, squares / means.shape[-1]))


def two_level(mean: float, table: Array, *, difference: bool = False, bounds: Bounds = ANYWHERE) -> Estimate:
    """Estimate a mean over seeds and examples drawn at random, both.

    Args:
        mean: the number itself; for a ratio it need not be the mean of the table.
        table: values ``[seeds, examples]``, at least two of each; jackknife values for a ratio.
        difference: whether to test it against zero.
        bounds: lowest and highest value of the score, or of either score that a difference is taken of.
    """
    parts = split_difference(table, bounds[1] - bounds[0]) if difference else split(table)
    half = float(parts.half_width(1.0 - CONFIDENCE))
    p_value = float(parts.p_value(np.array(mean))) if difference else None
    error = math.sqrt(max(float(parts.total), float(parts.fixed)))
    low, high = ends(mean, half, bounds, table.shape[1], difference=difference)
    return Estimate(mean, low, high, parts.shape[0], "seeds and examples", error, p_value)


# Where the uncertainty of a number comes from: training seeds, sampling seeds, or examples.


@dataclass(frozen=True)
class VarianceShares:
    """Shares of the variance of a number; those that are known add up to 1.

    Args:
        seed: from which training seeds were used; None with one seed, when it cannot be seen.
        sampling: from the seeds with which answers were sampled; 0 for a score of tokens, None where
            answers were sampled once, when it cannot be separated.
        examples: from which examples are held out.
        interaction: from examples that answer differently to one seed than to another.
    """

    seed: float | None
    sampling: float | None
    examples: float
    interaction: float


def variance_shares(tables: Sequence[Array], sampling: Sequence[float | None]) -> VarianceShares | None:
    """Return where the variance of the mean of a table comes from, averaged over several tables.

    Args:
        tables: values or paired differences ``[seeds, examples]``; jackknife values for a ratio.
        sampling: variance that one cell of each table owes to the sampling of answers; None if unknown.

    Returns:
        the shares, or None where nothing varies or there is one example.

    >>> variance_shares([np.array([[1.0, 2.0], [3.0, 4.0]])], [0.0])
    VarianceShares(seed=0.8, sampling=0.0, examples=0.2, interaction=0.0)
    """
    usable = [(table, noise) for table, noise in zip(tables, sampling, strict=True) if table.shape[1] > 1]
    if not usable:
        return None
    several = usable[0][0].shape[0] > 1
    parts = np.array([_components(table, noise) for table, noise in usable]).mean(0)
    if not parts.sum() > 0:
        return None
    seed, sampled, examples, rest = (float(part) for part in parts / parts.sum())
    known = all(noise is not None for _, noise in usable)
    return VarianceShares(seed if several else None, sampled if known else None, examples, rest)


def _components(table: Array, noise: float | None) -> tuple[float, float, float, float]:
    """Variance of the mean from seeds, sampling, examples, and seeds times examples."""
    seeds, examples = table.shape
    sampled = (noise or 0.0) / (seeds * examples)
    if seeds == 1:
        whole = float(table.var(ddof=1)) / examples
        return 0.0, min(sampled, whole), max(whole - sampled, 0.0), 0.0
    parts = split(table)
    rest = float(parts.rest)
    own = max(float(parts.seeds) - rest, 0.0)
    return own, min(sampled, rest), float(parts.examples), max(rest - sampled, 0.0)
