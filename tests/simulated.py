"""Scores of contenders drawn with known means: on a lattice, skewed, heavy-tailed, of unequal examples and seeds."""

from dataclasses import dataclass, field

import numpy as np
from scipy.special import expit, logit, stdtrit

from kdcli.bounded import ANYWHERE, SHARE, score_interval
from kdcli.statistics import holm, split, split_difference

BLOCK = 3_000_000
LEVEL = 0.05


@dataclass(frozen=True)
class Drawn:
    """Scores of several lines.

    Args:
        values: ``[trials, lines, seeds, examples]``; jackknife values for a ratio.
        truth: true mean of each line, ``[lines]``.
        means: the scores themselves where they are not the means of the values, ``[trials, lines]``.
        bounds: of the score.
    """

    values: np.ndarray
    truth: np.ndarray
    means: np.ndarray | None = None
    bounds: tuple[float, float] = field(default=ANYWHERE)

    @property
    def scores(self):
        return self.values.mean((-2, -1)) if self.means is None else self.means

    @property
    def reach(self):
        return self.bounds[1] - self.bounds[0]


def _per_line(values, lines):
    return np.resize(np.atleast_1d(values).astype(float), lines)


def smooth(
    draw, trials, lines, seeds, examples, *, of_seed="normal", of_example="normal", share=0.3, shared=0.0, alone=False
):
    """Smooth scores of mean 0.

    ``share`` of the mean's variance is due to seeds, ``shared`` of that to all lines; with ``alone`` seeds do not
    matter to the first line.
    """
    kinds = {
        "none": lambda size: np.zeros(size),
        "normal": lambda size: draw.normal(size=size),
        "gamma": lambda size: draw.exponential(size=size) - 1.0,
        "t3": lambda size: draw.standard_t(3, size) / np.sqrt(3.0),
        "failing": lambda size: draw.normal(size=size) + 1.0 - 10.0 * (draw.random(size) < 0.1),
    }
    seed = kinds[of_seed]((trials, lines, seeds, 1)) * np.sqrt(1.0 - shared)
    seed = seed + kinds[of_seed]((trials, 1, seeds, 1)) * np.sqrt(shared)
    if alone:
        seed[:, 0] = 0.0
    values = np.sqrt(share * seeds) * seed
    values = values + np.sqrt((1.0 - share) * examples) * kinds[of_example]((trials, lines, 1, examples))
    values = values + 0.5 * np.sqrt(examples) * draw.standard_normal((trials, lines, seeds, examples))
    return Drawn(values, np.zeros(lines))


def hits(draw, trials, lines, seeds, examples, *, rate, clump=None, seed_effect=0.0, steps=1):
    """Scores of 0, 1/steps ... 1 around a rate; examples may be all easy or hard, and seeds good or bad."""

    def odds(count, examples):
        easy = np.full((count, 1, 1, examples), rates[0])
        if clump is not None:
            easy = np.clip(draw.beta(rates[0] * clump, (1 - rates[0]) * clump, easy.shape), 1e-9, 1 - 1e-9)
        shift = (logit(rates) - logit(rates[0]))[None, :, None, None]
        return logit(easy) + shift

    rates = _per_line(rate, lines)
    luck = seed_effect * draw.normal(size=(trials, lines, seeds, 1))
    chance = expit(odds(trials, examples) + luck)
    values = draw.binomial(steps, np.broadcast_to(chance, (trials, lines, seeds, examples))) / steps
    if clump is None and not seed_effect:
        return Drawn(values, rates, bounds=SHARE)
    nodes = np.random.default_rng(0).normal(size=(1, 1, 400, 1)) * seed_effect
    nodes = nodes - nodes.mean()
    many = expit(odds(2500, 1) + nodes) if seed_effect else expit(odds(200_000, 1))
    return Drawn(values, many.mean((0, 2, 3)), bounds=SHARE)


def tokens(draw, trials, lines, seeds, examples):
    """Means per token over examples of very unequal length, easy and hard ones, as jackknife values."""
    weight = np.ceil(draw.lognormal(2.5, 1.0, (trials, 1, 1, examples)))
    hard = draw.gamma(4.0, 0.25, (trials, 1, 1, examples))
    luck = 0.05 * draw.normal(size=(trials, lines, seeds, 1))
    each = 2.0 * hard + luck + draw.normal(size=(trials, lines, seeds, examples)) / np.sqrt(weight)
    total, count = (each * weight).sum(-1, keepdims=True), weight.sum(-1, keepdims=True)
    whole, left_out = total / count, (total - each * weight) / (count - weight)
    values = examples * whole - (examples - 1) * left_out
    return Drawn(values, np.full(lines, 2.0), whole.mean((-2, -1)))


def difference_half(drawn, line, base, level=LEVEL):
    """Half of the interval of a difference, and the difference, ``[trials]``."""
    parts = split_difference(drawn.values[:, line] - drawn.values[:, base], drawn.reach)
    return parts.half_width(level), drawn.scores[:, line] - drawn.scores[:, base]


def mean_ends(drawn, line):
    """The interval of a mean, ``[trials]`` each."""
    values = drawn.values[:, line]
    quantile = stdtrit(values.shape[-1] - 1, 1 - LEVEL / 2)
    half = split(values).half_width(LEVEL)
    return score_interval(drawn.scores[:, line], half, drawn.bounds, quantile**2 / values.shape[-1])


def blocks(trials, lines, seeds, examples):
    """Cut a number of trials into as many as fit into memory at once."""
    most = max(1, BLOCK // (lines * seeds * examples))
    return [min(most, trials - done) for done in range(0, trials, most)]


def coverage(make, seeds, examples, trials, seed=1):
    """How often the interval of a mean and of a difference holds the truth."""
    draw, found = np.random.default_rng([seed, seeds, examples]), np.zeros(2)
    for count in blocks(trials, 2, seeds, examples):
        drawn = make(draw, count, 2, seeds, examples)
        low, high = mean_ends(drawn, 1)
        half, difference = difference_half(drawn, 1, 0)
        found[0] += ((low <= drawn.truth[1]) & (drawn.truth[1] <= high)).sum()
        found[1] += (np.abs(difference - (drawn.truth[1] - drawn.truth[0])) <= half).sum()
    return found / trials


def false_claims(make, seeds, examples, trials, contenders=6, seed=2):
    """How often any of equal contenders is told from the baseline: Holm's first step decides whether there is any."""
    draw, found = np.random.default_rng([seed, seeds, examples]), 0
    for count in blocks(trials, contenders, seeds, examples):
        drawn, any_claim = make(draw, count, contenders, seeds, examples), np.zeros(count, dtype=bool)
        for line in range(1, contenders):
            half, difference = difference_half(drawn, line, 0, LEVEL / (contenders - 1))
            any_claim |= np.abs(difference) > half + 1e-12
        found += any_claim.sum()
    return found / trials


def claims_by_holm(drawn):
    """Whether any line is told from the first, ``[trials]``, by adjusted p-values."""
    p_values = []
    for line in range(1, drawn.values.shape[1]):
        parts = split_difference(drawn.values[:, line] - drawn.values[:, 0], drawn.reach)
        p_values.append(parts.p_value(drawn.scores[:, line] - drawn.scores[:, 0]))
    return [any(value is not None and value < LEVEL for value in holm(each)) for each in np.array(p_values).T.tolist()]
