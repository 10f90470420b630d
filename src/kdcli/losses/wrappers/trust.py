"""A loss on the rows whose teacher is trusted."""

from dataclasses import replace
from typing import ClassVar

from pydantic import model_validator
from torch import Tensor

from kdcli.losses.base import DistillLoss, Needs, Tokens
from kdcli.losses.composite import refuse_features, take
from kdcli.losses.rows import Rows
from kdcli.losses.token_facts import TRUST
from kdcli.losses.wrappers.token_weights import WeighedTokens


class Trusted(WeighedTokens):
    """A loss weighed by how far the teacher is trusted on the token's row, a number from 0 to 1.

    The number is the row's column ``teacher_trust``, which ``kd data score --mark`` writes; 1 where a row has none,
    and on words that student or teacher wrote. Tokens of weight 0 are not computed. Weights are taken as they are: the
    mean is over all tokens, so that ``ce+0.5*trusted:loss=fkl`` learns the label of every row, and the teacher, with
    weight 0.5, where it is trusted.

    Reference: label revision and data selection, arXiv:2404.03693, which selects by an influence score.

    >>> import torch
    >>> q, p = torch.zeros(2, 2), torch.tensor([[0.9, 0.1], [0.9, 0.1]]).log()
    >>> tok = Tokens(torch.tensor([0, 0]), q, p, {TRUST: torch.tensor([1.0, 0.0])})
    >>> [round(value, 4) for value in Trusted().token_loss(tok).tolist()]
    [0.3681, 0.0]
    """

    name: ClassVar[str] = "trusted"
    formula: ClassVar[str] = "w_i L_i, w_i the trust in the teacher on the token's row"
    reference: ClassVar[str] = "Lan et al. 2024, arXiv:2404.03693 (selection of rows)"
    cost: ClassVar[str] = "that of the loss inside on the tokens whose weight is not 0"

    @model_validator(mode="after")
    def _on_logits(self) -> "Trusted":
        refuse_features({"loss": self.loss}, self.name)
        return self

    def needs(self) -> Needs:
        """Ask for the trust in each row, and for what the loss inside asks."""
        inner = super().needs()
        return replace(inner, facts=inner.facts | {TRUST})

    def _selected(self, tok: Tokens) -> tuple[Tensor, Rows | None, DistillLoss, Tokens]:
        weight = tok.facts[TRUST]
        tok.logged[f"{self.name}.trust"] = weight
        child, view = self._inside(tok)
        rows = Rows.of(weight != 0)
        return rows.take(weight), rows, child, take(view, rows)
