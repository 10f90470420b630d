"""Means of LoRA adapters: the mean of two products is not the product of two means.

An adapter adds ``s B_l A_l`` to the weight of layer l, with A ``[r, in]``, B ``[out, r]`` and a fixed scale s.
With weights w_k of the clients and a bar for their mean::

    factors    A = bar(A), B = bar(B)                       what is usually done; B A differs from bar(B A)
    product    B A = bar(B A) cut to its r greatest singular values
    freeze_a   A is never trained, so that bar(B) A = bar(B A)              Sun et al. 2024, arXiv:2403.12313
    exact      factors, and bar(B A) - bar(B) bar(A) is added to the frozen weight   Singhal et al. 2024, 2410.09432

The gap says how far the first is from the mean of the updates: ``||bar(B A) - bar(B) bar(A)|| / ||bar(B A)||``, over
all layers together, in the Frobenius norm.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdcli.errors import InputError
from kdcli.federated.server import weighted_mean

_A, _B = "lora_A", "lora_B"


@dataclass(frozen=True)
class Pair:
    """The names of one layer's two factors.

    Args:
        layer: what both have in common.
        a: the one that is applied first.
        b: the other.
    """

    layer: str
    a: str
    b: str


def pairs_of(names: Iterable[str]) -> list[Pair]:
    """Return the pairs of factors among the names of an adapter's tensors, as peft writes them.

    Raises:
        InputError: LORA-04, a name that is neither half of a pair.

    >>> pairs_of(["q.lora_A.weight", "q.lora_B.weight"])
    [Pair(layer='q', a='q.lora_A.weight', b='q.lora_B.weight')]
    """
    known = set(names)
    found = [
        Pair(name.partition(f".{_A}.")[0], name, name.replace(f".{_A}.", f".{_B}."))
        for name in sorted(known)
        if f".{_A}." in name
    ]
    odd = known - {one.a for one in found} - {one.b for one in found}
    if odd or any(one.b not in known for one in found):
        what = f"{min(odd or known)} is no half of a pair"
        raise InputError("LORA-04", what, where="adapter", fix="give an adapter of plain LoRA layers")
    return found


def mean_product(adapters: Sequence[Mapping[str, Tensor]], pair: Pair, weights: Sequence[int]) -> Tensor:
    """Return bar(B A) of one layer, ``[out, in]`` in float64."""
    return weighted_mean([one[pair.b].double() @ one[pair.a].double() for one in adapters], weights)


def squares(product: Tensor, a: Tensor, b: Tensor) -> tuple[float, float]:
    """Return ``||bar(B A) - b a||^2`` and ``||bar(B A)||^2`` of one layer, for :func:`gap`.

    Args:
        product: bar(B A), ``[out, in]``.
        a: ``[r, in]``.
        b: ``[out, r]``.
    """
    return float((product - b @ a).square().sum()), float(product.square().sum())


def gap(parts: Sequence[tuple[float, float]]) -> float:
    """Return how far products are from the mean of the updates, over all layers, relative to the latter.

    Args:
        parts: of each layer, what :func:`squares` returned.

    Returns:
        0 where they are equal, or where no client changed anything.

    >>> gap([(3.0, 40.0), (6.0, 60.0)])
    0.3
    """
    lost, whole = (sum(column) for column in zip(*parts, strict=True))
    return (lost / whole) ** 0.5 if whole else 0.0


def factorise(product: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return A ``[r, in]`` and B ``[out, r]`` whose product is the best of rank r, each with half of the scale.

    >>> a, b = factorise(torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64), 1)
    >>> (b @ a).round(decimals=6)
    tensor([[2., 0.],
            [0., 0.]], dtype=torch.float64)
    """
    u, s, v = torch.linalg.svd(product, full_matrices=False)
    root = s[:rank].sqrt()
    return root[:, None] * v[:rank], u[:, :rank] * root


def residual_numbers(adapters: Sequence[Mapping[str, Tensor]], pairs: Sequence[Pair]) -> int:
    """Return how many numbers ``exact`` sends to each client: all residuals, as factors or whole, whichever is less.

    A residual is ``sum_k w_k (B_k - bar(B)) (A_k - bar(A))``, of rank (K - 1) r at most for K clients.
    """
    found = 0
    for one in pairs:
        (rank, width), height = adapters[0][one.a].shape, adapters[0][one.b].shape[0]
        found += min((len(adapters) - 1) * rank * (height + width), height * width)
    return found
