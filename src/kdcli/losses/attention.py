"""Matching of attention maps."""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from kdcli.losses.feature import FeatureLoss
from kdcli.losses.layers import Features, Pair, wide
from kdcli.shapes import TokenValues


class AttentionMaps(FeatureLoss):
    """Distance between a token's rows of the student's and of the teacher's attention maps.

    A row is how a head spreads its attention over the n tokens up to the token itself. With a the student's
    row and b the teacher's: ``kl`` is ``KL(b || a)``; ``mse`` is ``mean_j (a_j - b_j)^2``; ``scores`` is the same
    of the scores before the softmax less their mean, ``log a_j - mean log a``, as no softmax sees a constant. The
    value of a token is the mean over heads and pairs of layers. Where the numbers of heads differ, rows (of ``scores``
    the centred scores) are averaged over the heads of each side first.

    Maps need eager attention: while one is asked for, both models compute it so. Attention dropout of the student
    is off, since it would thin the maps. Memory: heads x length^2 numbers a sequence and layer.

    Args:
        kind: the distance.
        map: the pairs of layers; layer l is block l.

    Reference: Jiao et al., arXiv:1909.10351 (TinyBERT), equation 7 (mse of scores); Wang et al., arXiv:2002.10957
    (MiniLM), section 3.1 (kl).

    >>> from torch import nn
    >>> from kdcli.losses.layers import Dims, Inner, ModelShape
    >>> shape = ModelShape(layers=1, width=2, heads=1)
    >>> student, teacher = (Inner({}, {1: torch.tensor([[row]])}) for row in ([0.5, 0.5, 0.0], [0.25, 0.75, 0.0]))
    >>> seen = Features(student, teacher, torch.tensor([2]), Dims(shape, shape), nn.ModuleDict())
    >>> [round(AttentionMaps(kind=kind).between((1, 1), seen).item(), 4) for kind in ("kl", "mse", "scores")]
    [0.1308, 0.0625, 0.3017]
    """

    name: ClassVar[str] = "attention"
    formula: ClassVar[str] = "1/|M| sum_(s,t) mean_heads D(A_s, A_t) on rows, D one of kl, mse, scores"
    reference: ClassVar[str] = "Jiao et al. 2020, arXiv:1909.10351, eq. 7; Wang et al. 2020, arXiv:2002.10957, sec. 3.1"
    cost: ClassVar[str] = "no logits; eager attention, about 10 FLOP an entry of the maps, heads x length^2 of them"
    feature: ClassVar[Literal["hidden", "attention"]] = "attention"
    first: ClassVar[int] = 1

    kind: Annotated[
        Literal["kl", "mse", "scores"], Field(description="distance between two rows of attention maps")
    ] = "kl"

    def between(self, pair: Pair, features: Features) -> TokenValues:
        """Return the distance of one pair of layers at each token."""
        student = wide(features.student.attention[pair[0]])
        teacher = wide(features.teacher.attention[pair[1]].detach())
        apart = student.shape[1] != teacher.shape[1]
        seen = (torch.arange(student.shape[-1], device=student.device) < features.reach[:, None])[:, None]
        if self.kind == "scores":
            student, teacher = _scores(student, seen), _scores(teacher, seen)
        if apart:
            student, teacher = student.mean(1, keepdim=True), teacher.mean(1, keepdim=True)
        if self.kind == "kl":
            found = torch.where(seen, teacher * (_log(teacher) - _log(student)), 0.0).sum(-1)
        else:
            found = torch.where(seen, student - teacher, 0.0).square().sum(-1) / features.reach[:, None]
        return found.mean(1)


def _log(rows: Tensor) -> Tensor:
    return rows.clamp_min(torch.finfo(rows.dtype).tiny).log()


def _scores(rows: Tensor, seen: Tensor) -> Tensor:
    """Return scores of rows less their mean over the tokens seen, 0 at the others."""
    logs = torch.where(seen, _log(rows), 0.0)
    return torch.where(seen, logs - logs.sum(-1, keepdim=True) / seen.sum(-1, keepdim=True), 0.0)
