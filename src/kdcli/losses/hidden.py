"""Matching of hidden states."""

from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from kdcli.losses.feature import FeatureLoss
from kdcli.losses.layers import Dims, Features, Pair, wide
from kdcli.shapes import TokenValues


class HiddenStates(FeatureLoss):
    """Distance between hidden states of the student, carried to the teacher's width, and the teacher's.

    For each pair of layers, with h the student's state times W and g the teacher's, both ``[d]``:
    ``mse`` is ``|h - g|^2 / d``; ``cosine`` is ``1 - cos(h, g)``; ``pkd`` is ``|h/|h| - g/|g||^2 / d``;
    ``squarehead`` is ``|h - g|^2 / |g|^2``, which does not change with the scale of both. The value of a token is the
    mean over pairs. W is the identity where the widths agree, else a learned linear map without bias.

    Args:
        kind: the distance.
        map: the pairs of layers. Layer 0 is what the first block reads; layer l is what block l gives, before any
            norm that follows the last block.

    Reference: Romero et al., arXiv:1412.6550, equation 3 (mse with a learned map); Sun et al., arXiv:1908.09355,
    equation 7 (pkd); Kurtic et al., arXiv:2310.06927, section 3 (squarehead, there a ratio of means over the batch).

    >>> from kdcli.losses.layers import Inner, ModelShape
    >>> shape = ModelShape(layers=1, width=2, heads=1)
    >>> student, teacher = (Inner({1: torch.tensor([row])}, {}) for row in ([1.0, 0.0], [0.0, 2.0]))
    >>> seen = Features(student, teacher, torch.tensor([1]), Dims(shape, shape), nn.ModuleDict())
    >>> [HiddenStates(kind=kind).between((1, 1), seen).item() for kind in ("mse", "cosine", "pkd", "squarehead")]
    [2.5, 1.0, 1.0, 1.25]
    """

    name: ClassVar[str] = "hidden"
    formula: ClassVar[str] = "1/|M| sum_(s,t) D(h_s W, h_t), D one of mse, cosine, pkd, squarehead"
    reference: ClassVar[str] = "Romero et al. 2015, arXiv:1412.6550, eq. 3; Sun et al. 2019, arXiv:1908.09355, eq. 7"
    cost: ClassVar[str] = "no logits; per pair 2 d_s d_t FLOP a token for W, about 5 d_t for the distance"
    feature: ClassVar[Literal["hidden", "attention"]] = "hidden"
    first: ClassVar[int] = 0

    kind: Annotated[
        Literal["mse", "cosine", "pkd", "squarehead"], Field(description="distance between two hidden states")
    ] = "mse"

    def modules(self, dims: Dims) -> nn.ModuleDict:
        """Return a linear map for each pair of layers, or none where the widths agree."""
        ours, theirs = dims.student.width, dims.teacher.width
        if ours == theirs:
            return nn.ModuleDict()
        return nn.ModuleDict({_key(pair): nn.Linear(ours, theirs, bias=False) for pair in self.pairs(dims)})

    def between(self, pair: Pair, features: Features) -> TokenValues:
        """Return the distance of one pair of layers at each token."""
        student, teacher = features.student.hidden[pair[0]], wide(features.teacher.hidden[pair[1]].detach())
        if _key(pair) in features.modules:
            carry = features.modules[_key(pair)]
            assert isinstance(carry, nn.Linear), "made by modules()"
            student = carry(student.to(carry.weight.dtype))
        return _DISTANCES[self.kind](wide(student), teacher)


def _key(pair: Pair) -> str:
    return f"{pair[0]}-{pair[1]}"


def _mse(student: Tensor, teacher: Tensor) -> Tensor:
    return (student - teacher).square().mean(-1)


def _cosine(student: Tensor, teacher: Tensor) -> Tensor:
    return 1.0 - functional.cosine_similarity(student, teacher, dim=-1)


def _pkd(student: Tensor, teacher: Tensor) -> Tensor:
    return _mse(functional.normalize(student, dim=-1), functional.normalize(teacher, dim=-1))


def _squarehead(student: Tensor, teacher: Tensor) -> Tensor:
    size = teacher.square().sum(-1).clamp_min(torch.finfo(teacher.dtype).tiny)
    return (student - teacher).square().sum(-1) / size


_DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": _mse,
    "cosine": _cosine,
    "pkd": _pkd,
    "squarehead": _squarehead,
}
