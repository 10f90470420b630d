"""A guest objective without a closed form: the engine takes its gradient by autograd."""

from typing import ClassVar

from torch import Tensor

from kdcli.losses.divergences.base import Divergence


class GuestForwardKL(Divergence):
    """Forward KL as a guest would write it."""

    name: ClassVar[str] = "guest_fkl"
    formula: ClassVar[str] = "sum_v p_v (log p_v - log q_v)"
    reference: ClassVar[str] = "none"
    cost: ClassVar[str] = "about 20 operations per entry"

    def divergence(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        """Return KL(p‖q) of each token."""
        return (log_p.exp() * (log_p - log_q)).sum(-1)
