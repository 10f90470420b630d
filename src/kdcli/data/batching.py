"""Orders examples, cuts them into micro-batches, pads them and shifts the labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from kdcli.data.images import ImageInputs
from kdcli.data.tokenize import Example

IGNORED = -100
"""Label of a position whose prediction does not count."""


@dataclass(frozen=True)
class Batch:
    """A micro-batch, padded on the right.

    The last token of a sequence is only ever a label, so ``s`` is one less than the longest.

    Args:
        input_ids: tokens read, shape ``[b, s]``.
        attention_mask: 1 where there is a token, shape ``[b, s]``.
        labels: already shifted, shape ``[b, s]``: the token that the logits at this very position
            predict, ``IGNORED`` unless that token belongs to a response.
        example: index of each sequence in the data set, shape ``[b]``.
        facts: what the source knows of each label, by name, each of shape ``[b, s]``.
        extra: the images of each sequence, None for one without; empty where none has any.
    """

    input_ids: Int[Tensor, "b s"]
    attention_mask: Int[Tensor, "b s"]
    labels: Int[Tensor, "b s"]
    example: Int[Tensor, " b"]
    facts: Mapping[str, Tensor] = field(default_factory=dict)
    extra: tuple[ImageInputs | None, ...] = ()

    @property
    def targets(self) -> int:
        """Number of labels that count."""
        return int((self.labels != IGNORED).sum())

    @property
    def tokens(self) -> int:
        """Number of tokens read, padding left out."""
        return int(self.attention_mask.sum())

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device; the example numbers stay where they are."""
        ids, mask, labels = (
            part.to(device, non_blocking=True) for part in (self.input_ids, self.attention_mask, self.labels)
        )
        facts = {name: fact.to(device, non_blocking=True) for name, fact in self.facts.items()}
        extra = tuple(None if one is None else one.to(device) for one in self.extra)
        return Batch(ids, mask, labels, self.example, facts, extra)


def collate(examples: Sequence[Example], indexes: Sequence[int], pad_id: int) -> Batch:
    """Make a batch of some examples.

    Which positions count follows from lengths alone, so a pad token that is also the end token
    takes no target away.

    Args:
        examples: all examples of the data set.
        indexes: which of them, in the order of the batch's rows; at least one.
        pad_id: any token id; padded positions are masked.

    >>> one = Example(ids=(5, 6, 7, 2), prompt_length=2, prompt="", references=(), where="")
    >>> collate([one], [0], pad_id=2).labels.tolist()
    [[-100, 7, 2]]
    """
    chosen = [examples[index] for index in indexes]
    shape = (len(chosen), max(len(example.ids) for example in chosen) - 1)
    input_ids = torch.full(shape, pad_id, dtype=torch.int64)
    attention_mask = torch.zeros(shape, dtype=torch.int64)
    labels = torch.full(shape, IGNORED, dtype=torch.int64)
    for row, example in enumerate(chosen):
        ids = torch.tensor(example.ids, dtype=torch.int64)
        end, first = len(ids) - 1, example.prompt_length - 1
        input_ids[row, :end] = ids[:-1]
        attention_mask[row, :end] = 1
        labels[row, first:end] = ids[first + 1 :]
    return Batch(input_ids, attention_mask, labels, torch.tensor(indexes, dtype=torch.int64), extra=images_of(chosen))


def images_of(examples: Sequence[Example]) -> tuple[ImageInputs | None, ...]:
    """Return the prepared images of some examples, None for each without; empty where none has any.

    Raises:
        InputError: IMG-03, an image that can be read no more.
        IntegrityError: IMG-04, an image that is not the one whose digest was taken.
    """
    if all(example.images is None for example in examples):
        return ()
    return tuple(
        None if example.images is None else example.images.inputs(example.prompt_length) for example in examples
    )


# Decides which examples form which step: a pure function of seed and epoch, with no state.


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
