"""An objective outside the package."""

from typing import ClassVar

from torch import Tensor

from kdcli.losses.divergence import Divergence


class Squared(Divergence):
    """The squared distance of the probabilities."""

    name: ClassVar[str] = "squared"

    def divergence(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        return (log_q.exp() - log_p.exp()).square().sum(-1)
