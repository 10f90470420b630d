"""Feature matching: attention maps and hidden states, layer by layer."""

import math
import re
from abc import abstractmethod
from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn
from torch.nn import functional

from kdcli.errors import UsageError
from kdcli.losses.base import Dims, DistillLoss, Features, Matches, Needs, Pair, Tokens, wide
from kdcli.shapes import TokenValues
from kdcli.text import one_line

# Which of the teacher's layers each of the student's is compared with.


_LAST = re.compile(r"last:([1-9]\d{0,5})$")
_PAIRS = re.compile(r"\d{1,6}-\d{1,6}(/\d{1,6}-\d{1,6})*$")


def check_map(text: str) -> str:
    """Return a layer map as it was typed.

    Raises:
        ValueError: it cannot be read.
    """
    if text in ("uniform", "identity") or _LAST.match(text) or _PAIRS.match(text):
        return text
    raise ValueError(f'map must be uniform, identity, last:K or pairs such as 1-2/3-8, got "{one_line(text, 60)}"')


def layer_pairs(text: str, dims: Dims, *, first: int, name: str) -> tuple[Pair, ...]:
    """Return the pairs of layers that a map names.

    ``uniform`` pairs every block s of the student with block ceil(s T / S) of the teacher, of S and T
    blocks; ``identity`` does the same where both have equally many; ``last:K`` pairs the last K of both;
    ``1-2/3-8`` names pairs, student first.

    Args:
        text: as typed.
        dims: how many layers there are.
        first: the first layer there is: 0 for hidden states, where 0 is what the first block reads, 1 for attention.
        name: the objective, for messages.

    Raises:
        UsageError: FEAT-01, a layer that does not exist.

    >>> from kdcli.losses.base import ModelShape
    >>> dims = Dims(ModelShape(3, 64, 4), ModelShape(8, 256, 8))
    >>> layer_pairs("uniform", dims, first=0, name="hidden"), layer_pairs("last:2", dims, first=0, name="hidden")
    (((1, 3), (2, 6), (3, 8)), ((2, 7), (3, 8)))
    """
    ours, theirs = dims.student.layers, dims.teacher.layers
    if text == "identity" and ours != theirs:
        raise _refuse(name, text, f"there are {ours} layers in the student and {theirs} in the teacher", dims)
    if text in ("uniform", "identity"):
        return tuple((layer, math.ceil(layer * theirs / ours)) for layer in range(1, ours + 1))
    last = _LAST.match(text)
    if last:
        count = int(last.group(1))
        if count > min(ours, theirs):
            raise _refuse(name, text, f"there are {ours} layers in the student and {theirs} in the teacher", dims)
        return tuple((ours - count + step, theirs - count + step) for step in range(1, count + 1))
    pairs = [(int(one), int(other)) for one, other in (pair.split("-") for pair in text.split("/"))]
    for index, (role, there) in enumerate((("student", ours), ("teacher", theirs))):
        wrong = next((pair[index] for pair in pairs if not first <= pair[index] <= there), None)
        if wrong is not None:
            raise _refuse(name, text, f"the {role} has layers {first} to {there}, not {wrong}", dims)
    return tuple(dict.fromkeys(pairs))


def _refuse(name: str, text: str, why: str, dims: Dims) -> UsageError:
    deepest = min(dims.student.layers, dims.teacher.layers)
    return UsageError(
        "FEAT-01", f"map={text} is impossible: {why}", where=name,
        fix=f"use map=uniform, map=last:{deepest} or pairs up to {dims.student.layers}-{dims.teacher.layers}",
    )  # fmt: skip


LayerMap = Annotated[
    str,
    AfterValidator(check_map),
    Field(description="layers compared: uniform, identity, last:K, or pairs student-teacher such as 1-2/3-8"),
]


class FeatureLoss(DistillLoss):
    """The mean, over pairs of layers, of a distance between what both hold at a token.

    No logits are computed for it; the engine collects the layers and takes the gradient by autograd.

    Class attributes:
        feature: what is compared.
        first: the first layer there is.
    """

    feature: ClassVar[Literal["hidden", "attention"]]
    first: ClassVar[int]

    map: LayerMap = "uniform"

    @abstractmethod
    def between(self, pair: Pair, features: Features) -> TokenValues:
        """Return the distance of one pair of layers at each token, ``[t]``."""

    def needs(self) -> Needs:
        """Ask for the inside of both models and for no logits."""
        return Needs(teacher=False, logits=False, features=frozenset({self.feature}))

    def pairs(self, dims: Dims) -> tuple[Pair, ...]:
        """Return the pairs of layers, student first.

        Raises:
            UsageError: FEAT-01, a layer that does not exist.
        """
        return layer_pairs(self.map, dims, first=self.first, name=self.name)

    def matches(self, dims: Dims) -> Matches:
        """Return the pairs of layers as what to collect."""
        pairs = frozenset(self.pairs(dims))
        return Matches(hidden=pairs) if self.feature == "hidden" else Matches(attention=pairs)

    def token_loss(self, tok: Tokens) -> TokenValues:
        """Return the mean over pairs of layers."""
        assert tok.features is not None, "declared by needs()"
        values = []
        for pair in self.pairs(tok.features.dims):
            values.append(self.between(pair, tok.features))
            tok.logged[f"{self.name}.{pair[0]}-{pair[1]}"] = values[-1].detach()
        return torch.stack(values).mean(0)

    def parts(self, tok: Tokens) -> dict[str, Tensor]:
        """Return nothing: no term is on logits."""
        return {}

    def feature_parts(self, tok: Tokens) -> dict[str, Tensor]:
        """Return the one term."""
        return {self.name: self.token_loss(tok)}


# Matching of attention maps.


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
    >>> from kdcli.losses.base import Dims, Inner, ModelShape
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


# Matching of hidden states.


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

    >>> from kdcli.losses.base import Inner, ModelShape
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
