"""An objective of our own making, with no closed form."""

from typing import ClassVar

from kdcli.losses.divergences.base import Divergence


class Overlap(Divergence):
    """One minus the overlap of both distributions' square roots (squared Hellinger distance)."""

    name: ClassVar[str] = "overlap"
    formula: ClassVar[str] = "1 - sum_v sqrt(p_v q_v)"
    reference: ClassVar[str] = "Hellinger 1909"
    cost: ClassVar[str] = "10 operations per entry"

    def divergence(self, log_q, log_p):
        return 1.0 - ((log_q + log_p) / 2).exp().sum(-1)
