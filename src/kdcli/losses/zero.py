"""Tells the objectives that vanish when the student equals the teacher."""

from kdcli.losses.around import Around
from kdcli.losses.atkd import AdaptiveTeachingKD
from kdcli.losses.base import DistillLoss
from kdcli.losses.ce import SoftCrossEntropy
from kdcli.losses.combine import Sum
from kdcli.losses.decoupled import DecoupledLoss
from kdcli.losses.divergence import Divergence
from kdcli.losses.mse_logits import LogitsMSE


def zero_at_equal(loss: DistillLoss) -> bool:
    """Whether a loss is never negative, and 0 where student and teacher are equal.

    Every divergence promises so, a guest's too; the cross-entropy with the teacher, built on the
    same frame, keeps the teacher's entropy.

    >>> from kdcli.losses.build import build_objective
    >>> zero_at_equal(build_objective("0.5*fkl+0.5*rkl")), zero_at_equal(build_objective("0.5*ce+0.5*fkl"))
    (True, False)
    """
    if isinstance(loss, Sum):
        return all(zero_at_equal(child) for _, child in loss.terms)
    if isinstance(loss, Around):
        return loss.zero_stays and zero_at_equal(loss.loss)
    if isinstance(loss, AdaptiveTeachingKD):
        return all(zero_at_equal(child) for child in (loss.easy, loss.hard) if child is not None)
    if isinstance(loss, SoftCrossEntropy):
        return False
    return isinstance(loss, (Divergence, DecoupledLoss, LogitsMSE))
