"""Where the uncertainty of a number comes from: training seeds, sampling seeds, or examples."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kdcli.statistics.estimate import Array
from kdcli.statistics.two_level import split


@dataclass(frozen=True)
class VarianceShares:
    """Shares of the variance of a number; those that are known add up to 1.

    Args:
        seed: from which training seeds were used; None with one seed, when it cannot be seen.
        sampling: from the seeds with which answers were sampled; 0 for a score of tokens, None where
            answers were sampled once, when it cannot be told from the rest.
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
