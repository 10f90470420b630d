"""Layers inside the two models: how many there are, which are compared, and what they hold."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor, nn

Pair: TypeAlias = tuple[int, int]
"""A student's layer and the teacher's that it is compared with."""


@dataclass(frozen=True)
class ModelShape:
    """Sizes of one model.

    Args:
        layers: blocks of the trunk. Layer 0 is what the first block reads, layer l what block l gives.
        width: numbers in a hidden state.
        heads: attention heads of a block.
    """

    layers: int
    width: int
    heads: int


@dataclass(frozen=True)
class Dims:
    """Sizes of student and teacher."""

    student: ModelShape
    teacher: ModelShape


@dataclass(frozen=True)
class Layers:
    """Which layers of one model are asked for.

    Args:
        hidden: those whose hidden states are.
        attention: those whose attention maps are.
    """

    hidden: frozenset[int] = frozenset()
    attention: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Matches:
    """Which layers an objective compares.

    Args:
        hidden: pairs whose hidden states are compared.
        attention: pairs whose attention maps are compared.

    >>> (Matches(hidden=frozenset({(1, 2)})) | Matches(hidden=frozenset({(2, 4)}))).teacher.hidden == {2, 4}
    True
    """

    hidden: frozenset[Pair] = frozenset()
    attention: frozenset[Pair] = frozenset()

    def __or__(self, other: "Matches") -> "Matches":
        return Matches(self.hidden | other.hidden, self.attention | other.attention)

    @property
    def student(self) -> Layers:
        """The student's layers."""
        return self._side(0)

    @property
    def teacher(self) -> Layers:
        """The teacher's layers."""
        return self._side(1)

    def _side(self, index: int) -> Layers:
        return Layers(frozenset(pair[index] for pair in self.hidden), frozenset(pair[index] for pair in self.attention))


@dataclass(frozen=True)
class Inner:
    """What the layers of one model hold at some tokens.

    Args:
        hidden: by layer, shape ``[t, d]``.
        attention: by layer, each token's row of every head's map, shape ``[t, h, s]``; 0 where it may not look.
    """

    hidden: Mapping[int, Tensor]
    attention: Mapping[int, Tensor]

    def __getitem__(self, rows: Tensor) -> "Inner":
        return self.map(lambda value: value[rows])

    def map(self, change: Callable[[Tensor], Tensor]) -> "Inner":
        """Return it with every tensor changed."""
        hidden = {layer: change(value) for layer, value in self.hidden.items()}
        return Inner(hidden, {layer: change(value) for layer, value in self.attention.items()})

    @property
    def tensors(self) -> list[Tensor]:
        """All of them, hidden states first, by layer."""
        return [value[layer] for value in (self.hidden, self.attention) for layer in sorted(value)]


@dataclass(frozen=True)
class Features:
    """The inside of both models at some tokens.

    Args:
        student: with gradient.
        teacher: without.
        reach: how many tokens each one may look at, itself included, shape ``[t]``.
        dims: sizes of both models.
        modules: the learned parts of the loss in hand.
    """

    student: Inner
    teacher: Inner
    reach: Tensor
    dims: Dims
    modules: nn.ModuleDict

    def __getitem__(self, rows: Tensor) -> "Features":
        return replace(self, student=self.student[rows], teacher=self.teacher[rows], reach=self.reach[rows])

    def within(self, label: str) -> "Features":
        """Return them as the loss of that label inside the loss in hand sees them."""
        inner = self.modules[label] if label in self.modules else nn.ModuleDict()
        assert isinstance(inner, nn.ModuleDict), "modules() answers a ModuleDict"
        return replace(self, modules=inner)


def wide(value: Tensor) -> Tensor:
    """Return a tensor in fp32, or in fp64 if it is."""
    return value if value.dtype == torch.float64 else value.float()
