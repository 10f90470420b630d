"""Scores from the gradient of a row's cross-entropy, taken at the logits or at the last layer, in closed form."""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from kdcli.models.head import Head
from kdcli.scores.base import Reading, Score, ScoreContext, ScoredRow, ScoreNeeds, needs_of
from kdcli.scores.likelihood import Whose


def errors(logits: Float[Tensor, "n v"], labels: Tensor) -> Float[Tensor, "n v"]:
    """Return the gradient of each token's cross-entropy over its logits, q less 1 at the label.

    >>> errors(torch.zeros(1, 2), torch.tensor([1])).tolist()
    [[0.5, -0.5]]
    """
    q = torch.softmax(logits, -1)
    return q.scatter_add_(-1, labels[:, None], -torch.ones_like(q[:, :1]))


class ErrorNorm(Score):
    """Mean length of the error vector q - 1[y]: 0 where the student knows every token, up to the square root of 2.

    >>> ErrorNorm().needs().student
    True
    """

    name: ClassVar[str] = "el2n"
    summary: ClassVar[str] = "mean Euclidean length of the error vector over the response's tokens"
    formula: ClassVar[str] = "(1/T) sum_t ||q_t - 1[y_t]||_2"
    reference: ClassVar[str] = "Paul et al. 2021, arXiv:2107.07075, definition 2.3"

    of: Whose = "student"

    def needs(self) -> ScoreNeeds:
        """Ask for the model that reads."""
        return needs_of(self.of)

    def value(self, row: ScoredRow) -> float:
        """Return the mean over the response's tokens."""
        return row.reading(self.of).each(lambda *token: errors(*token).norm(dim=-1)).mean().item()


class GradientInfluence(Score):
    """How much a small step on this row lowers the loss of the held-out rows: product of the two gradients.

    Taken at the head's weight, where a token's gradient is the outer product of its error and its hidden state; so
    the product of two tokens is that of their errors times that of their hidden states, and no gradient, which
    would be as large as the head, is ever built. Above 0 the row helps, below 0 it harms. The held-out gradient is
    the mean over all held-out response tokens, the row's a sum over its own, as a step takes it; ``per=token`` takes
    their mean instead, so that long rows are not ahead. It stands for a step of plain gradient descent with learning
    rate 1, at these weights.

    >>> GradientInfluence().needs().held_out
    True
    """

    name: ClassVar[str] = "tracin"
    summary: ClassVar[str] = "product of the row's gradient and the held-out rows', at the last layer"
    formula: ClassVar[str] = "sum_t (1/S) sum_s ((q_t - 1[y_t]) . (q_s - 1[y_s])) (h_t . h_s), s over held-out tokens"
    reference: ClassVar[str] = "Pruthi et al. 2020, arXiv:2002.08484, last layer of one checkpoint"

    per: Annotated[Literal["row", "token"], Field(description="sum or mean over the row's tokens")] = "row"

    def needs(self) -> ScoreNeeds:
        """Ask for the student and for held-out rows."""
        return needs_of("student") | ScoreNeeds(held_out=True)

    def value(self, row: ScoredRow) -> float:
        """Return the product."""
        context = row.context
        held_out = context.once(type(self), lambda: _held_out(context))
        reading = row.reading("student")
        total = sum(gradient_product(*one, *other) for one in _slopes(reading) for other in _slopes(held_out))
        return total / len(held_out.labels) / (row.targets if self.per == "token" else 1)


def gradient_product(
    errors: Float[Tensor, "t v"],
    hidden: Float[Tensor, "t d"],
    other_errors: Float[Tensor, "s v"],
    other_hidden: Float[Tensor, "s d"],
) -> float:
    """Return the product of two gradients ``sum_t error_t hidden_t'`` of a matrix ``[v, d]`` that is never built.

    Args:
        errors: gradients over the logits of some tokens.
        hidden: what the matrix was multiplied with at each.
        other_errors: likewise, of other tokens.
        other_hidden: likewise.

    >>> one = torch.tensor([[1.0, -1.0]]), torch.tensor([[2.0]])
    >>> gradient_product(*one, torch.tensor([[3.0, 1.0]]), torch.ones(1, 1))  # (3 - 1) * 2
    4.0
    """
    return ((errors @ other_errors.T).double() * (hidden @ other_hidden.T).double()).sum().item()


def _held_out(context: ScoreContext) -> Reading:
    """Return all held-out response tokens, as if they were of one row."""
    readings = [context.read(example, "student") for example in context.held_out]
    hidden = torch.cat([one.hidden for one in readings])
    return Reading(readings[0].model, hidden, torch.cat([one.labels for one in readings]))


@torch.no_grad()
def _slopes(reading: Reading) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the gradients over what the head's weight gives, ``[n, v]``, and the hidden states, ``[n, d]``."""
    head: Head = reading.model.head
    for hidden, logits, labels in reading.blocks():
        yield head.grad_through_(errors(logits, labels), logits), hidden.to(logits.dtype)
