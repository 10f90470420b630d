"""Pads examples into a batch and shifts the labels, here and nowhere else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor

from kdcli.data.dataset import Example

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
    """

    input_ids: Int[Tensor, "b s"]
    attention_mask: Int[Tensor, "b s"]
    labels: Int[Tensor, "b s"]
    example: Int[Tensor, " b"]
    facts: Mapping[str, Tensor] = field(default_factory=dict)

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
        return Batch(ids, mask, labels, self.example, facts)


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
    return Batch(input_ids, attention_mask, labels, torch.tensor(indexes, dtype=torch.int64))
