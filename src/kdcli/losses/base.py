"""What a loss sees, what it answers, and what it must declare."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

from torch import Tensor, nn

from kdcli.losses.coarse import Coarse
from kdcli.losses.layers import Dims, Features, Matches
from kdcli.losses.logits import log_softmax
from kdcli.losses.needs import Needs
from kdcli.options import Part
from kdcli.shapes import Logits, TeacherLogits, TokenLabels, TokenValues

Facts: TypeAlias = Mapping[str, Tensor]


@dataclass(frozen=True)
class Tokens:
    """The tokens in hand: everything a loss can see.

    Args:
        labels: target ids, shape ``[t]``.
        student: student logits, shape ``[t, v]``.
        teacher: teacher logits, shape ``[t, w]``, with w = v unless its tokenizer is another one; None when the
            objective needs no teacher, or only bins are known.
        coarse: what is known of a teacher whose logits are not; None otherwise.
        facts: per-token numbers of shape ``[t]`` from survey, plan and source; always holds
            ``seq``, the index of the token's sequence in the micro-batch.
        watched: what a loss wants followed over training, written by it while it computes:
            ``name.what`` -> ``[t]``, without gradient. Logged as means over tokens, never summed into the loss.
        progress: share of the run that is done, 0 at its first step and 1 at its last.
        features: the inside of both models, while terms on features are taken; ``student`` then has no columns.
    """

    labels: TokenLabels
    student: Logits
    teacher: TeacherLogits | None = None
    facts: Facts = field(default_factory=dict)
    watched: dict[str, Tensor] = field(default_factory=dict)
    coarse: Coarse | None = None
    progress: float = 0.0
    features: Features | None = None

    def log_probs(self, tau: float = 1.0) -> tuple[Logits, TeacherLogits]:
        """Return ``(student, teacher)`` log-probabilities at temperature ``tau``; no gradient reaches the teacher."""
        assert self.teacher is not None, "the objective declared needs().teacher = False"
        return log_softmax(self.student, tau), log_softmax(self.teacher.detach(), tau)


class DistillLoss(Part, ABC):
    """An objective's value for each token; its fields are its options.

    Subclasses are final: to change behaviour, wrap. They hold no state, so an instance is
    hashable, printable and picklable.

    Class attributes:
        name: the registered name.
        formula: one line of mathematics, p the teacher, q the student, z its logits.
        reference: paper and equation.
        cost: arithmetic per vocabulary entry and what else it spends.
    """

    part: ClassVar[str] = "loss"

    @property
    def plans_among(self) -> bool:
        """Whether :meth:`plan` heeds the fact ``among``, which marks the tokens to plan for; so if it plans nothing."""
        return type(self).plan is DistillLoss.plan

    formula: ClassVar[str]
    reference: ClassVar[str]
    cost: ClassVar[str]

    def needs(self) -> Needs:
        """Declare what this objective asks of the engine."""
        return Needs()

    def survey(self, tok: Tokens) -> Facts:
        """Return per-token facts of one chunk, before any loss is taken; runs without gradient."""
        return {}

    def plan(self, facts: Facts) -> Facts:
        """Turn the facts of a whole micro-batch, each of shape ``[n]``, into further facts."""
        return {}

    def matches(self, dims: Dims) -> Matches:
        """Return which layers inside the two models are compared; none by default.

        Raises:
            UsageError: FEAT-01, a layer that a model of this size does not have.
        """
        return Matches()

    def modules(self, dims: Dims) -> nn.ModuleDict:
        """Return the learned parts, freshly made; they are trained with the student and not exported."""
        return nn.ModuleDict()

    def feature_parts(self, tok: Tokens) -> dict[str, Tensor]:
        """Return the named terms, each ``[t]``, on ``tok.features``; the engine takes their gradient by autograd."""
        return {}

    @abstractmethod
    def token_loss(self, tok: Tokens) -> TokenValues:
        """Return the loss of each token, shape ``[t]``, differentiable in the student's logits."""

    def parts(self, tok: Tokens) -> dict[str, Tensor]:
        """Return the named terms, each ``[t]``, that add up to ``token_loss``."""
        return {self.name: self.token_loss(tok)}

    def parts_and_grad(self, tok: Tokens) -> tuple[dict[str, Tensor], Tensor] | None:
        """Return ``parts`` and the gradient of their sum over v, ``[t, v]``, in closed form.

        None (the default) lets the engine take the gradient by autograd. May overwrite
        ``tok.student`` and ``tok.teacher``, which the engine owns.
        """
        return None
