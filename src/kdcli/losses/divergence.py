"""Objectives that are one function of a token's two log-probability vectors."""

from abc import abstractmethod
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from kdcli.losses.base import DistillLoss, Tokens
from kdcli.losses.block import Block, column
from kdcli.losses.coarse import bins_of, value_and_grad
from kdcli.losses.logits import finite_logits, log_softmax, widen
from kdcli.losses.needs import Needs
from kdcli.shapes import Logits, TeacherLogits, TokenValues

_TINY = 1e-6
"""Values below this are taken again in the form in which nothing cancels."""


class Divergence(DistillLoss):
    """A loss that is a function of the two log-probability vectors of a token."""

    temperature: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="softmax temperature tau of both sides")
    ] = 1.0
    fewest: ClassVar[int] = 2
    """Fewest known tokens: with one, nothing says where among the rest the student's mass may lie."""

    total: ClassVar[bool] = False
    """Whether the closed form, and what mends it, is right for any finite logits at once, excluded tokens among them.

    Elsewhere than on a CPU no token can be picked to be taken again; without this, autograd is used there.
    """

    scale_tau2: Annotated[bool, Field(description="multiply by tau^2, so that gradients keep their size")] = True

    @abstractmethod
    def divergence(self, log_q: Logits, log_p: TeacherLogits) -> TokenValues:
        """Return the divergence of each token from student ``log_q`` and teacher ``log_p``."""

    def needs(self) -> Needs:
        """Ask for the teacher; its likeliest tokens and the mass of the rest will do at temperature 1."""
        whole = "" if self.temperature == 1.0 else "at a temperature other than 1 the rest has no known mass"
        return Needs(whole=whole, known=self.fewest)

    def on_bins(self, log_q: Logits, log_p: Logits) -> TokenValues:
        """Return the divergence of each token between bins, of which the last stands for many tokens."""
        return self.divergence(log_q, log_p)

    def from_logits(self, student: Logits, teacher: TeacherLogits) -> TokenValues:
        """Return the divergence of each token at the temperature, from finite logits."""
        return self.divergence(log_softmax(student, self.temperature), log_softmax(teacher, self.temperature))

    def divergence_and_grad(self, block: Block) -> tuple[Tensor, Tensor] | None:
        """Return the divergence ``[t]`` and its gradient over student logits at tau = 1, ``[t, v]``.

        None (the default) means: no closed form. May use up the block's buffers. Exact unless a
        value is not finite: that token is taken again by autograd through :meth:`from_logits`.
        """
        return None

    def closed(self, block: Block) -> tuple[Tensor, Tensor] | None:
        """Return :meth:`divergence_and_grad`, improved by what can be read off the block before it is used up."""
        return self.divergence_and_grad(block)

    def mended(self, value: Tensor, grad: Tensor, block: Block) -> None:
        """Improve values of a closed form in place, if there is need, by taking some tokens again."""

    def token_loss(self, tok: Tokens) -> TokenValues:
        """Return the divergence at the temperature, times tau^2 if asked."""
        if tok.coarse is not None:
            student = finite_logits(tok.student)
            return self.on_bins(bins_of(student, tok.coarse.ids), tok.coarse.log_probs.to(student.dtype))
        assert tok.teacher is not None, "a divergence declares needs().teacher"
        value = self.from_logits(finite_logits(tok.student), finite_logits(tok.teacher.detach()))
        return value if self._scale == 1.0 else value * self._scale

    @torch.no_grad()
    def parts_and_grad(self, tok: Tokens) -> tuple[dict[str, Tensor], Tensor] | None:
        """Take value and gradient in closed form where the divergence offers one.

        On a CPU single tokens are taken again where that form has lost digits; elsewhere no token can be picked, and
        the form must be right for all of them at once.
        """
        if tok.coarse is not None:
            value, grad = value_and_grad(self.on_bins, finite_logits(tok.student), tok.coarse)
            return {self.name: value}, grad
        assert tok.teacher is not None, "a divergence declares needs().teacher"
        block = Block(widen(tok.student), widen(tok.teacher), self.temperature)
        closed = self.closed(block) if self.total or not block.total else None
        if closed is None:
            return None
        tok.watched.update(block.watched)
        value, grad = closed
        if not block.total:
            self.mended(value, grad, block)
            self.redo(value, grad, block, torch.nonzero(~torch.isfinite(value)).squeeze(1))
        if self._scale != 1.0:
            value *= self._scale
        if self._scale != self.temperature:
            grad *= self._scale / self.temperature
        return {self.name: value}, grad

    def redo(self, value: Tensor, grad: Tensor, block: Block, rows: Tensor) -> None:
        """Take some tokens' value and gradient again, by autograd."""
        if len(rows):
            student, teacher = (finite_logits(side) for side in block.logits(rows))
            with torch.enable_grad():
                again = self.from_logits(student.requires_grad_(), teacher)
                (slope,) = torch.autograd.grad(again.sum(), student)
            value[rows], grad[rows] = again.detach(), slope * self.temperature

    @property
    def _scale(self) -> float:
        return self.temperature**2 if self.scale_tau2 else 1.0


class StableDivergence(Divergence):
    """A divergence that takes logits as they are, because their difference keeps its digits."""

    faint: ClassVar[float] = 1e-2
    """Values of the closed form below this, times the size of what cancels in them, have lost digits."""

    @abstractmethod
    def between(self, log_q: Logits, log_p: Logits, tau: float) -> TokenValues:
        """Return the divergence of each token between the softmaxes of ``log_q / tau`` and ``log_p / tau``."""

    @abstractmethod
    def faint_values(self, block: Block) -> Tensor:
        """Return the divergence, ``[t]``, where it is small, to some digits; NaN where that fails."""

    def faint_grad(self, block: Block) -> Tensor:
        """Return the gradient where the value is slight, ``[t, v]``, in a form that keeps its digits.

        Needed of a divergence that is ``total`` and has a bound :attr:`slight`.
        """
        raise NotImplementedError(f"{self.name} is total and loses digits of its gradient")

    def divergence(self, log_q: Logits, log_p: TeacherLogits) -> TokenValues:
        """Return the divergence of each token from student ``log_q`` and teacher ``log_p``."""
        return self.between(log_q, log_p, 1.0)

    def from_logits(self, student: Logits, teacher: TeacherLogits) -> TokenValues:
        """Return the divergence of each token at the temperature, from finite logits."""
        return self.between(student, teacher, self.temperature)

    @property
    def slight(self) -> float:
        """Below this value, times the size of what cancels in it, the closed form's gradient has lost digits."""
        return 0.0

    def closed(self, block: Block) -> tuple[Tensor, Tensor] | None:
        """Return the closed form; where no token can be taken again, with small values and gradients in finer forms."""
        if not block.total:
            return self.divergence_and_grad(block)
        value, slope = self.faint_values(block), self.faint_grad(block) if self.slight else None
        found = self.divergence_and_grad(block)
        if found is None:
            return None
        plain, grad = found
        value = torch.where(plain < block.size * self.faint, value, plain)
        if slope is not None:
            grad = torch.where(column(value < block.size * self.slight), slope, grad)
        return value, grad

    def mended(self, value: Tensor, grad: Tensor, block: Block) -> None:
        """Take small values again in a form in which less cancels, and tiny ones in the one where nothing does.

        So are gradients, where the value shows that they have lost digits.
        """
        size = torch.as_tensor(block.size, dtype=value.dtype).expand_as(value)
        rows = torch.nonzero(value < self.faint * size).squeeze(1)
        if not len(rows):
            return
        value[rows] = self.faint_values(block.rows(rows))
        rows = rows[~(value[rows] >= max(_TINY, self.slight) * size[rows])]
        if not len(rows):
            return
        student, teacher = block.logits(rows)
        value[rows] = self.from_logits(finite_logits(student), finite_logits(teacher))
        grad[rows[value[rows] == 0]] = 0.0
        self.redo(value, grad, block, rows[(value[rows] < self.slight * size[rows]) & (value[rows] > 0)])
