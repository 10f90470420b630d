"""Decides which examples form which step: a pure function of seed and epoch, with no state."""

from collections.abc import Sequence

import numpy as np

_PURPOSE = 0x6F72646572  # keeps this stream apart from other uses of the same seed


def epoch_steps(lengths: Sequence[int], batch_size: int, *, seed: int, epoch: int, window: int) -> list[list[int]]:
    """Return the examples of each optimizer step of one epoch.

    The permutation depends on seed and epoch alone. Within each window of steps the examples are
    sorted by length and cut into steps, so that those of a step are of similar length; then the
    steps of the window are shuffled. Every example comes exactly once; if the batch size does not
    divide their number, the last step is the short one and holds a random rest.

    Args:
        lengths: tokens of each example.
        batch_size: examples per step.
        seed: the run's seed.
        epoch: counted from 0.
        window: steps sorted together; 1 keeps the plain permutation.

    >>> [sorted(step) for step in epoch_steps([3, 1, 3, 1], 2, seed=0, epoch=0, window=2)]
    [[0, 2], [1, 3]]
    """
    count = len(lengths)
    whole = count - count % batch_size
    bits = random_bits(seed, epoch, count + whole // batch_size)
    permutation, step_keys = np.argsort(bits[:count], kind="stable").tolist(), bits[count:]
    steps: list[list[int]] = []
    for start in range(0, whole, window * batch_size):
        block = permutation[start : min(start + window * batch_size, whole)]
        if window > 1:
            block.sort(key=lambda index: -lengths[index])
        cuts = [block[at : at + batch_size] for at in range(0, len(block), batch_size)]
        keys = step_keys[len(steps) : len(steps) + len(cuts)]
        steps.extend(cuts[at] for at in np.argsort(keys, kind="stable").tolist())
    if whole < count:
        steps.append(permutation[whole:])
    return steps


def random_bits(seed: int, epoch: int, count: int) -> np.ndarray:
    """Return 64 random bits for each of so many places, the same in every numpy version."""
    # Raw output of a bit generator is the same in every numpy version; Generator's methods may not be.
    key = np.random.SeedSequence([seed, epoch, _PURPOSE])
    return np.random.Philox(key).random_raw(count)


def micro_batches(indexes: Sequence[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Cut the examples of a step into micro-batches of a bounded number of padded tokens.

    Args:
        indexes: examples of the step.
        lengths: tokens of every example of the data set.
        budget: padded tokens per micro-batch; a single longer example makes one of its own.

    >>> micro_batches([0, 1, 2], [2, 9, 3], budget=10)
    [[1], [2, 0]]
    """
    batches: list[list[int]] = []
    room = 0
    for index in sorted(indexes, key=lambda index: -lengths[index]):
        if not batches or len(batches[-1]) >= room:
            batches.append([])
            room = max(1, budget // max(1, lengths[index]))
        batches[-1].append(index)
    return batches
