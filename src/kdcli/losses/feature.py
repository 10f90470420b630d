"""Objectives on what lies inside the two models, layer by layer."""

from abc import abstractmethod
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from kdcli.losses.base import DistillLoss, Tokens
from kdcli.losses.layer_map import check_map, layer_pairs
from kdcli.losses.layers import Dims, Features, Matches, Pair
from kdcli.losses.needs import Needs
from kdcli.shapes import TokenValues

LayerMap = Annotated[
    str,
    AfterValidator(check_map),
    Field(description="layers compared: uniform, last:K, or pairs student-teacher such as 1-2/3-8"),
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
            tok.watched[f"{self.name}.{pair[0]}-{pair[1]}"] = values[-1].detach()
        return torch.stack(values).mean(0)

    def parts(self, tok: Tokens) -> dict[str, Tensor]:
        """Return nothing: no term is on logits."""
        return {}

    def feature_parts(self, tok: Tokens) -> dict[str, Tensor]:
        """Return the one term."""
        return {self.name: self.token_loss(tok)}
