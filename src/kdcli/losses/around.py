"""What every loss around one other loss shares: the inner one cannot tell that it is inside."""

from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor, nn

from kdcli.losses.base import DistillLoss, Facts, Tokens
from kdcli.losses.build import NestedLoss
from kdcli.losses.children import hand_on, inside, merged_modules, merged_needs, plan_all, survey_all
from kdcli.losses.kl import ForwardKL
from kdcli.losses.layers import Dims, Matches
from kdcli.losses.logits import finite_logits
from kdcli.losses.needs import Needs
from kdcli.shapes import Logits, TokenValues

_LABEL = "loss"


def live_zeros(student: Logits) -> TokenValues:
    """Return a loss of 0 for each token that autograd can follow, ``[t]``.

    >>> import torch
    >>> live_zeros(torch.tensor([[1.0, -torch.inf]])).tolist()
    [0.0]
    """
    return finite_logits(student).amax(-1) * 0.0


class Around(DistillLoss):
    """A loss that changes what another one sees, or what becomes of its numbers.

    Subclasses are final and change one of three things: which loss is inside at this point of the run
    (:meth:`at`), what it sees (:meth:`shown`), or what its parts and gradient become. Without any of
    these, the loss inside is handed through: needs, facts, parts, closed form and what it watches.
    """

    zero_stays: ClassVar[bool] = True
    """Whether the value for equal models is 0 if that of the loss inside is."""

    loss: Annotated[NestedLoss, Field(description="objective inside")] = ForwardKL()

    def at(self, progress: float) -> DistillLoss:
        """Return the loss inside at a share of the run, from 0 to 1."""
        return self.loss

    def shown(self, tok: Tokens) -> Tokens:
        """Return the tokens as the loss inside is to see them; may write into ``tok.watched``."""
        return tok

    def needs(self) -> Needs:
        """Return what the loss inside asks for."""
        return merged_needs({_LABEL: self.loss})

    def survey(self, tok: Tokens) -> Facts:
        """Let the loss inside survey."""
        return survey_all({_LABEL: self.at(tok.progress)}, self.shown(tok))

    def plan(self, facts: Facts) -> Facts:
        """Let the loss inside plan."""
        return plan_all({_LABEL: self.loss}, facts)

    @property
    def plans_among(self) -> bool:
        """Whether the loss inside can plan for some of the tokens, unless this one has a plan of its own."""
        return type(self).plan is Around.plan and self.loss.plans_among

    def matches(self, dims: Dims) -> Matches:
        """Return the layers that the loss inside compares."""
        return self.loss.matches(dims)

    def modules(self, dims: Dims) -> nn.ModuleDict:
        """Return the learned parts of the loss inside."""
        return merged_modules({_LABEL: self.loss}, dims)

    def feature_parts(self, tok: Tokens) -> dict[str, Tensor]:
        """Return the terms on features of the loss inside, which sees the tokens as they are."""
        if tok.features is None:
            return {}
        child = self.at(tok.progress)
        view = inside(_LABEL, child, tok)
        found = child.feature_parts(view)
        hand_on(child.name, child, view, tok)
        return found

    def feature_name(self) -> str:
        """Return what the terms on features together are called, apart from those on logits."""
        return f"{self.name}.features" if self.needs().logits else self.name

    def token_loss(self, tok: Tokens) -> TokenValues:
        """Return the sum of the parts."""
        on_logits = self.parts(tok) if self.needs().logits else {}
        first, *others = (on_logits | self.feature_parts(tok)).values()
        return sum(others, start=first)

    def parts(self, tok: Tokens) -> dict[str, Tensor]:
        """Return the parts of the loss inside."""
        child, view = self._inside(tok)
        found = child.parts(view)
        hand_on(child.name, child, view, tok)
        return found

    def parts_and_grad(self, tok: Tokens) -> tuple[dict[str, Tensor], Tensor] | None:
        """Return parts and gradient of the loss inside, if it has them in closed form."""
        child, view = self._inside(tok)
        closed = child.parts_and_grad(view)
        hand_on(child.name, child, view, tok)
        return closed

    def _inside(self, tok: Tokens) -> tuple[DistillLoss, Tokens]:
        child = self.at(tok.progress)
        return child, inside(_LABEL, child, self.shown(tok))
