"""Sums and ranks over groups of tokens, of a micro-batch or of each sequence, without host reads."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

AMONG = "among"
"""The fact that marks the tokens an objective plans for, where it plans for some of the micro-batch's only."""

Scope: TypeAlias = Literal["micro_batch", "sequence"]


@dataclass(frozen=True)
class Groups:
    """Tokens in groups, each with the size of its own.

    Args:
        key: the group of each token, whole numbers, ``[n]``.
        order: the tokens group by group, those of one in the order they had, ``[n]``.
        start: where the group of a token begins in that order, ``[n]``.
        sizes: how many tokens the group of a token has, ``[n]``.

    >>> groups = Groups.by(torch.tensor([7, 3, 7]))
    >>> groups.sizes.tolist(), groups.sums(torch.tensor([1.0, 2.0, 4.0])).tolist(), groups.places.tolist()
    ([2, 1, 2], [5.0, 2.0, 5.0], [0, 0, 1])
    """

    key: Tensor
    order: Tensor
    start: Tensor
    sizes: Tensor

    @classmethod
    def of(cls, facts: Mapping[str, Tensor], scope: Scope) -> "Groups":
        """Return the groups of a micro-batch; tokens that are not planned for stand in groups of their own."""
        sequence = facts["seq"].long()
        key = sequence if scope == "sequence" else torch.zeros_like(sequence)
        return cls.by(2 * key + facts[AMONG].long() if AMONG in facts else key)

    @classmethod
    def one(cls, values: Tensor) -> "Groups":
        """Return one group of as many tokens as there are values."""
        return cls.by(torch.zeros_like(values, dtype=torch.int64))

    @classmethod
    def by(cls, key: Tensor) -> "Groups":
        """Return the groups of tokens with the same key, ``[n]``."""
        sorted_, order = torch.sort(key, stable=True)
        start = torch.searchsorted(sorted_, key)
        return cls(key, order, start, torch.searchsorted(sorted_, key, right=True) - start)

    @property
    def places(self) -> Tensor:
        """Each token's place in its group, from 0, ``[n]``."""
        return self.unsorted(torch.arange(len(self.order), device=self.order.device)) - self.start

    def sums(self, values: Tensor) -> Tensor:
        """Return the sum over each token's group, ``[n]``."""
        return torch.zeros_like(values).index_add_(0, self.start, values)[self.start]

    def most(self, values: Tensor) -> Tensor:
        """Return the largest number in each token's group, ``[n]``."""
        return torch.full_like(values, -torch.inf).scatter_reduce_(0, self.start, values, "amax")[self.start]

    def ranked(self, values: Tensor, rank: Tensor) -> Tensor:
        """Return the rank-th largest number in each token's group, ``[n]``.

        Args:
            values: none of them NaN, ``[n]``.
            rank: from 1 to the group's size, ``[n]``.
        """
        falling = torch.argsort(values, descending=True, stable=True)
        by_group = falling[torch.argsort(self.key[falling], stable=True)]
        return values[by_group][self.start + rank - 1]

    def sorted(self, values: Tensor) -> Tensor:
        """Return numbers group by group, ``[n]``."""
        return values[self.order]

    def unsorted(self, values: Tensor) -> Tensor:
        """Return numbers that stand group by group in the order of the tokens, ``[n]``."""
        return torch.empty_like(values).index_copy_(0, self.order, values)
