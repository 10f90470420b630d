"""The random numbers behind an answer: a pure function of seed, example and step, whatever else is answered."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BLOCK = 256
"""Neighbouring ids of the vocabulary that are drawn from together."""

_AT_ONCE = 4
"""Numbers that Philox makes from one count of its counter."""


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


def stream(seed: int, example: int, drawn: int = 0) -> np.random.Philox:
    """Return the generator of one answer's bits, as it is after so many numbers.

    >>> whole = stream(10, 3).random_raw(9)
    >>> bool((stream(10, 3, drawn=6).random_raw(3) == whole[6:]).all())
    True
    """
    found = np.random.Philox(key=np.array([seed, example], dtype=np.uint64), counter=drawn // _AT_ONCE)
    found.random_raw(drawn % _AT_ONCE)
    return found


def draws_per_token(ids: int) -> int:
    """Return how many numbers one token takes, given the entries of the vocabulary."""
    return BLOCK + blocks(ids)


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
    count = draws_per_token(ids)
    bits = np.array([one.random_raw(count) for one in streams], dtype=np.uint64)
    return -np.log((np.asarray(bits >> np.uint64(12), dtype=np.float64) + 0.5) * 2.0**-52)


def blocks(ids: int) -> int:
    """Return how many blocks hold so many ids, at least two, so that there is always a second.

    >>> blocks(100), blocks(50257)
    (2, 197)
    """
    return max(2, -(-ids // BLOCK))
