"""The base of wrappers around one loss, and the wrapper that routes tokens by origin."""

from dataclasses import replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from kdcli.losses.base import Dims, DistillLoss, Facts, Matches, Needs, Tokens, finite_logits, widen
from kdcli.losses.build import NestedLoss, build_objective
from kdcli.losses.composite import (
    child_facts,
    hand_on,
    inside,
    merged_modules,
    merged_needs,
    plan_all,
    planned_for,
    refuse_features,
    survey_all,
    take,
)
from kdcli.losses.divergences.kl import ForwardKL
from kdcli.losses.groups import AMONG
from kdcli.losses.rows import Rows, host_may_read
from kdcli.losses.token_facts import ORIGIN, ORIGIN_SHARE, ORIGINS, code_of
from kdcli.shapes import Logits, TokenValues

_LABEL = "loss"


def live_zeros(student: Logits) -> TokenValues:
    """Return a loss of 0 for each token that autograd can follow, ``[t]``.

    >>> import torch
    >>> live_zeros(torch.tensor([[1.0, -torch.inf]])).tolist()
    [0.0]
    """
    return finite_logits(student).amax(-1) * 0.0


class LossWrapper(DistillLoss):
    """A loss that changes what another one sees, or what becomes of its numbers.

    Subclasses are final and change one of three things: which loss is inside at this point of the run
    (:meth:`at`), what it sees (:meth:`shown`), or what its parts and gradient become. Without any of
    these, the loss inside is handed through: needs, facts, parts, closed form and what it logs.
    """

    zero_at_equal: ClassVar[bool] = True

    loss: Annotated[NestedLoss, Field(description="objective inside")] = ForwardKL()

    def at(self, progress: float) -> DistillLoss:
        """Return the loss inside at a share of the run, from 0 to 1."""
        return self.loss

    def shown(self, tok: Tokens) -> Tokens:
        """Return the tokens as the loss inside is to see them; may write into ``tok.logged``."""
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
        return type(self).plan is LossWrapper.plan and self.loss.plans_among

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


# One objective for each origin of a token: the training rows, the student's words, the teacher's, a corpus.


_HALVES = {"student": "0.5*srkl:alpha=0.5", "teacher": "0.5*skl:alpha=0.5"}
"""The halves of the Jensen-Shannon divergence, each on the samples of the side it leads with."""


class Route(DistillLoss):
    """Sends each token to the objective of its origin; each origin's tokens are averaged by themselves.

    With G_o the step's tokens of origin o::

        L = sum over o of mean over G_o of L_o

    so that an origin's weight is the one written into its objective, as in ``route:rollout=minillm,corpus=(0.5*ce)``,
    however many tokens it has. The counts are those of the whole optimizer step, not of a micro-batch. An origin
    that a step has none of adds nothing to it. Origins are ``data`` (training rows), ``student`` and ``teacher``
    (their own words), ``rollout`` (words drawn from a mixture of both) and ``corpus`` (a second set of texts).

    Without any option: half of KL(q || m) on the student's words and half of KL(p || m) on the teacher's, m being the
    mean of both, which is f-distill's Jensen-Shannon divergence.

    >>> facts = {"origin": torch.tensor([1, 4, 4]), "origin_share": torch.tensor([1 / 3, 2 / 3, 2 / 3])}
    >>> tok = Tokens(torch.tensor([0, 0, 1]), torch.zeros(3, 4), None, facts)
    >>> loss = build_objective("route:student=ce,corpus=(0.5*ce)")
    >>> [round(value, 4) for value in loss.token_loss(tok).tolist()]  # ln 4 = 1.3863, times 3, and times 1/2 times 3/2
    [4.1589, 1.0397, 1.0397]
    """

    name: ClassVar[str] = "route"
    formula: ClassVar[str] = "sum_o mean over tokens of origin o of L_o"
    reference: ClassVar[str] = (
        "Wen et al. 2023 (f-DISTILL), arXiv:2307.15190, section 3; Gu et al. 2024 (MiniLLM), algorithm 1"
    )
    cost: ClassVar[str] = "that of each origin's objective on its own tokens, and a copy of their logits"

    data: Annotated[NestedLoss | None, Field(description="objective of the training rows")] = None
    student: Annotated[NestedLoss | None, Field(description="objective of the student's own answers")] = None
    teacher: Annotated[NestedLoss | None, Field(description="objective of the teacher's answers")] = None
    rollout: Annotated[NestedLoss | None, Field(description="objective of sequences drawn from both")] = None
    corpus: Annotated[NestedLoss | None, Field(description="objective of the second corpus")] = None

    @model_validator(mode="after")
    def _on_logits(self) -> "Route":
        refuse_features(self.routes, self.name)
        return self

    @property
    def routes(self) -> dict[str, DistillLoss]:
        """The objective of each origin."""
        given = {origin: getattr(self, origin) for origin in ORIGINS}
        found = {origin: loss for origin, loss in given.items() if loss is not None}
        return found or {origin: build_objective(spec) for origin, spec in _HALVES.items()}

    def needs(self) -> Needs:
        """Ask for each token's origin and its share of the step, and for what each objective asks of its own labels."""
        routes = self.routes
        own = Needs(teacher=False, facts=frozenset({ORIGIN, ORIGIN_SHARE}), origins=frozenset(routes))
        return replace(own | merged_needs(routes), right_labels=False)

    def survey(self, tok: Tokens) -> Facts:
        """Survey the objectives that ask for it, over all tokens."""
        return survey_all(self.routes, tok)

    def plan(self, facts: Facts) -> Facts:
        """Let each objective plan over the tokens of its origin; its facts are 0 on all others."""
        planned: dict[str, Tensor] = {}
        for origin, child in self.routes.items():
            mask, own = facts[ORIGIN] == code_of(origin), child_facts(origin, facts)
            if child.plans_among and not host_may_read():
                found = child.plan({**own, AMONG: mask & facts[AMONG] if AMONG in facts else mask})
                index = None
            else:
                index = torch.nonzero(mask).squeeze(1)
                found = child.plan({name: fact[index] for name, fact in own.items()}) if len(index) else {}
            rows = Rows(mask, index)
            planned |= {planned_for(origin, name): rows.placed(fact) for name, fact in found.items()}
        return planned

    @property
    def plans_among(self) -> bool:
        """Whether every origin's objective can plan for its tokens among all."""
        return all(child.plans_among for child in self.routes.values())

    def token_loss(self, tok: Tokens) -> TokenValues:
        """Return each token's loss in the objective of its origin, over the origin's share of the step."""
        first, *others = self.parts(tok).values()
        return sum(others, start=first)

    def parts(self, tok: Tokens) -> dict[str, Tensor]:
        """Return each origin's term, 0 on the tokens of others."""
        named: dict[str, Tensor] = {}
        for origin, child in self.routes.items():
            rows, factor = self._rows(origin, tok)
            named[origin] = _zeros(tok)
            if not rows.none:
                view = take(inside(origin, child, tok), rows)
                found = child.token_loss(view)
                named[origin] = named[origin] + rows.placed(factor.to(found.dtype) * found)
                self._log(origin, child, view, rows, factor, tok)
        return named

    @torch.no_grad()
    def parts_and_grad(self, tok: Tokens) -> tuple[dict[str, Tensor], Tensor] | None:
        """Take each origin's closed form on its own tokens; None unless all there are have one."""
        grad: Tensor | None = None
        named: dict[str, Tensor] = {}
        for origin, child in self.routes.items():
            rows, factor = self._rows(origin, tok)
            named[origin] = _zeros(tok)
            if rows.none:
                continue
            view = take(inside(origin, child, tok), rows)
            closed = child.parts_and_grad(view)
            if closed is None:
                return None
            found = torch.stack(list(closed[0].values())).sum(0)
            named[origin] = rows.put(named[origin], factor.to(found.dtype) * found)
            grad = torch.zeros_like(tok.student, dtype=closed[1].dtype) if grad is None else grad
            grad = rows.put(grad, closed[1] * factor.to(closed[1].dtype)[:, None])
            self._log(origin, child, view, rows, factor, tok)
        return named, torch.zeros_like(tok.student) if grad is None else grad

    @staticmethod
    def _rows(origin: str, tok: Tokens) -> tuple[Rows, Tensor]:
        """Return which tokens are of an origin, and by what their losses are multiplied."""
        rows = Rows.of(tok.facts[ORIGIN] == code_of(origin))
        return rows, 1.0 / rows.take(tok.facts[ORIGIN_SHARE])

    @staticmethod
    def _log(origin: str, child: DistillLoss, view: Tokens, rows: Rows, factor: Tensor, tok: Tokens) -> None:
        """Hand on what the objective logged, so that its mean over the step is the origin's."""
        for name, value in view.logged.items():
            scaled = rows.placed(value * factor.to(value.dtype))
            tok.logged[f"{origin}{name.removeprefix(child.name)}"] = scaled


def _zeros(tok: Tokens) -> Tensor:
    """Return 0 for each token, in fp32 or wider, of which a gradient may be asked."""
    nothing = widen(tok.student[:0]).sum()
    return nothing.expand(tok.labels.shape).clone()
