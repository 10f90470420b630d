"""The random numbers behind an answer: a pure function of seed, example and step, whatever else is answered."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BLOCK = 256
"""Neighbouring ids of the vocabulary that are drawn from together."""


def uniforms(seed: int, examples: Sequence[int], steps: int) -> NDArray[np.float64]:
    """Return numbers in [0, 1) that depend on seed, example and step alone.

    Args:
        seed: sampling seed, 0 to 2**63 - 1.
        examples: example numbers.
        steps: draws per example.

    Returns:
        draws of shape ``[len(examples), steps]``, from Philox keyed by (seed, example).

    >>> uniforms(10, [3], 2).tolist() == uniforms(10, [0, 3], 5)[1:, :2].tolist()
    True
    """
    bits = np.array([stream(seed, example).random_raw(steps) for example in examples], dtype=np.uint64)
    return np.asarray(bits >> np.uint64(11), dtype=np.float64) * 2.0**-53


def stream(seed: int, example: int) -> np.random.Philox:
    """Return the generator of one answer's bits."""
    return np.random.Philox(key=np.array([seed, example], dtype=np.uint64))


def waits(streams: Sequence[np.random.Philox], ids: int) -> NDArray[np.float64]:
    """Draw the next step's waiting times of some answers, exponential with mean 1.

    Args:
        streams: one per answer, advanced by one step.
        ids: entries of the vocabulary.

    Returns:
        times of shape ``[len(streams), BLOCK + blocks]``: those within a block, then those of the blocks.

    >>> waits([stream(10, 3)], 1000).shape
    (1, 260)
    """
    count = BLOCK + blocks(ids)
    bits = np.array([one.random_raw(count) for one in streams], dtype=np.uint64)
    return -np.log((np.asarray(bits >> np.uint64(12), dtype=np.float64) + 0.5) * 2.0**-52)


def blocks(ids: int) -> int:
    """Return how many blocks hold so many ids, at least two, so that there is always a second.

    >>> blocks(100), blocks(50257)
    (2, 197)
    """
    return max(2, -(-ids // BLOCK))
