"""Adaptive teaching (ATKD): tokens that are easy and hard for the teacher get different losses."""

from functools import cache
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from kdcli.losses.base import DistillLoss, Facts, Needs, Tokens
from kdcli.losses.build import NestedLoss
from kdcli.losses.composite import inside, merged_needs, plan_all, refuse_features, survey_all, take
from kdcli.losses.divergences.decoupled import (
    DecoupledKD,
    DiversityKD,
    KeepUnc,
    Parts,
    Weighing,
    finite,
    log_uncertainty,
    parts,
    parts_and_grad,
)
from kdcli.losses.groups import Groups
from kdcli.losses.rows import Rows
from kdcli.shapes import TokenMask, TokenValues

_ROUNDING = 1e-9
"""Keeps ``k * n`` from falling below a whole number by rounding."""


class AdaptiveTeachingKD(DistillLoss):
    """Adaptive teaching: diversity part alone on easy tokens, both parts on hard ones.

    The teacher's uncertainty is ``UNC = 1 - p_g``, its mass off the target g. The ``k n`` tokens of
    highest UNC are hard, the others easy; the token at the border and its ties are hard, so that
    at k = 0.5 easy means strictly below the lower median. Each group is averaged by itself::

        L = lam * mean over easy of DKD + (1 - lam) * mean over hard of (TKD + DKD)

    so at lam = 0.2 a hard token weighs four times an easy one of equally large groups. The weight
    of an empty group goes to the other. Groups are formed within a micro-batch, whose size thus
    belongs to the experiment, or within each sequence (``scope=sequence``).

    ``base=rkl`` swaps the roles in both parts; the split still follows the teacher. ``easy=`` and
    ``hard=`` take any objective instead, as in ``atkd:hard=akl,hard.mu=0.7``.

    >>> loss = AdaptiveTeachingKD()
    >>> unc = torch.tensor([0.1, 0.5, 0.7, 0.2, 0.9])
    >>> plan = loss.plan({"split/log_unc": unc.log(), "seq": torch.zeros(5, dtype=torch.int64)})
    >>> [round(weight, 3) for weight in plan["split/weight"].tolist()]
    [0.5, 1.333, 1.333, 0.5, 1.333]
    """

    name: ClassVar[str] = "atkd"
    zero_at_equal: ClassVar[bool] = True
    formula: ClassVar[str] = "lam mean_easy(DKD) + (1-lam) mean_hard(TKD + DKD)"
    reference: ClassVar[str] = "Zhong et al. 2024 (arXiv 2402.11890, ACL), with the group means of the published code"
    cost: ClassVar[str] = "about 35 operations per vocabulary entry; a survey pass over the teacher's head"

    base: Annotated[
        Literal["fkl", "rkl"], Field(description="divergence whose parts are used: forward or reverse KL")
    ] = "fkl"
    easy: Annotated[NestedLoss | None, Field(description="objective of the easy tokens, in place of DKD")] = None
    hard: Annotated[NestedLoss | None, Field(description="objective of the hard tokens, in place of TKD + DKD")] = None
    k: Annotated[float, Field(ge=0, le=1, description="share of tokens that are hard")] = 0.5
    lam: Annotated[float, Field(ge=0, le=1, description="weight of the easy tokens' mean")] = 0.2
    keep_unc: KeepUnc = False
    scope: Annotated[
        Literal["micro_batch", "sequence"], Field(description="tokens among which hard and easy are split")
    ] = "micro_batch"
    temperature: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="softmax temperature tau of both sides")
    ] = 1.0
    scale_tau2: Annotated[bool, Field(description="multiply by tau^2, so that gradients keep their size")] = True

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> "AdaptiveTeachingKD":
        if self.easy is not None and self.hard is not None:
            presets = ("base", "keep_unc", "temperature", "scale_tau2")
            given = [name for name in presets if getattr(self, name) != type(self).model_fields[name].default]
            if given:
                raise ValueError(f"{' and '.join(given)} would be ignored: easy and hard are given; set it on them")
        refuse_features(self._children, self.name)
        return self

    @property
    def _children(self) -> dict[str, DistillLoss]:
        """The two objectives, presets where none is given."""
        easy, hard = _presets(self.base == "rkl", self.keep_unc, self.temperature, self.scale_tau2)
        return {"easy": self.easy or easy, "hard": self.hard or hard}

    def needs(self) -> Needs:
        """Ask for a survey of the teacher, and for what the two objectives ask."""
        return Needs(survey="teacher") | merged_needs(self._children)

    def survey(self, tok: Tokens) -> Facts:
        """Return the log of the teacher's uncertainty, and what the two objectives survey."""
        assert tok.teacher is not None, "needs().teacher is declared"
        return {"split/log_unc": log_uncertainty(tok.teacher, tok.labels), **survey_all(self._children, tok)}

    def plan(self, facts: Facts) -> Facts:
        """Split the tokens and weigh the groups."""
        log_unc = facts["split/log_unc"]
        groups = Groups.of(facts, self.scope)
        hard = hardest(log_unc, self.k, groups)
        weight = group_weights(hard, self.lam, groups).to(log_unc.dtype)
        return {"split/hard": hard, "split/weight": weight, **plan_all(self._children, facts)}

    @property
    def plans_among(self) -> bool:
        """Whether the two objectives can plan for some of the tokens; the split can."""
        return all(child.plans_among for child in self._children.values())

    def token_loss(self, tok: Tokens) -> TokenValues:
        """Return each token's loss, at the weight of its group."""
        easy, hard = self.parts(tok).values()
        return easy + hard

    def parts(self, tok: Tokens) -> dict[str, Tensor]:
        """Return the terms of the easy and of the hard tokens, each 0 on the others."""
        assert tok.teacher is not None, "needs().teacher is declared"
        self._log(tok)
        if self._is_preset:
            student, teacher = (finite(logits, self.temperature) for logits in (tok.student, tok.teacher))
            return self._named(parts(student, teacher, tok.labels, self._weighing(tok)), tok)
        named: dict[str, Tensor] = {}
        for label, child in self._children.items():
            rows, weight = self._rows(label, tok), tok.facts["split/weight"]
            named[label] = torch.zeros_like(weight)
            if not rows.none:
                found = child.token_loss(take(inside(label, child, tok), rows))
                named[label] = rows.placed(rows.take(weight) * found)
        return named

    def parts_and_grad(self, tok: Tokens) -> tuple[dict[str, Tensor], Tensor] | None:
        """Take the presets in one pass; other objectives on the tokens of their own group."""
        assert tok.teacher is not None, "needs().teacher is declared"
        self._log(tok)
        if self._is_preset:
            found, grad = parts_and_grad(tok.student, tok.teacher, tok.labels, self._weighing(tok), self.temperature)
            return self._named(found, tok), grad if self._scale == 1.0 else grad.mul_(self._scale)
        weight = tok.facts["split/weight"]
        grad = torch.zeros_like(tok.student, dtype=weight.dtype)
        named: dict[str, Tensor] = {}
        for label, child in self._children.items():
            rows = self._rows(label, tok)
            named[label] = torch.zeros_like(weight)
            if not rows.none:
                closed = child.parts_and_grad(take(inside(label, child, tok), rows))
                if closed is None:
                    return None
                own = rows.take(weight)
                named[label] = rows.put(named[label], own * sum(closed[0].values()))
                grad = rows.put(grad, closed[1].mul_(own[:, None]))
        return named, grad

    @staticmethod
    def _log(tok: Tokens) -> None:
        tok.logged["atkd.easy_share"] = (~tok.facts["split/hard"]).to(tok.facts["split/weight"].dtype)

    @property
    def _is_preset(self) -> bool:
        return self.easy is None and self.hard is None

    @property
    def _scale(self) -> float:
        return self.temperature**2 if self.scale_tau2 else 1.0

    def _rows(self, label: str, tok: Tokens) -> Rows:
        return Rows.of(tok.facts["split/hard"] == (label == "hard"))

    def _weighing(self, tok: Tokens) -> Weighing:
        weight = tok.facts["split/weight"]
        return Weighing(weight * tok.facts["split/hard"], weight, self.base == "rkl", self.keep_unc)

    def _named(self, found: Parts, tok: Tokens) -> dict[str, Tensor]:
        hard, weight = tok.facts["split/hard"], tok.facts["split/weight"] * self._scale
        return {
            "easy": weight * found.diversity.masked_fill(hard, 0.0),
            "hard": weight * (found.target + found.diversity).masked_fill(~hard, 0.0),
        }


@cache
def _presets(reverse: bool, keep_unc: bool, temperature: float, scale_tau2: bool) -> tuple[DiversityKD, DecoupledKD]:
    """Return the default losses of easy and hard tokens."""
    shared = {"reverse": reverse, "keep_unc": keep_unc, "temperature": temperature, "scale_tau2": scale_tau2}
    return DiversityKD(**shared), DecoupledKD(**shared)


def hardest(log_unc: TokenValues, k: float, groups: Groups | None = None) -> TokenMask:
    """Mark the hard tokens: the highest ``k n`` and the one at the border, with its ties.

    Args:
        log_unc: log of the teacher's uncertainty, ``[t]``.
        k: share of hard tokens; 0 marks none.
        groups: the tokens among which they are found; all together without.

    >>> hardest(torch.tensor([0.36, 0.73, 0.77, 0.80, 0.97]), 0.5).tolist()
    [False, False, True, True, True]
    """
    if k == 0 or not len(log_unc):
        return torch.zeros_like(log_unc, dtype=torch.bool)
    groups = groups or Groups.one(log_unc)
    count = torch.minimum((groups.sizes * k + _ROUNDING).floor().long() + 1, groups.sizes)
    return log_unc >= groups.ranked(log_unc, count)


def group_weights(hard: TokenMask, lam: float, groups: Groups | None = None) -> Tensor:
    """Return weights whose sum over tokens is their number, and that average hard and easy ones by themselves.

    Args:
        hard: which tokens are hard, ``[t]``.
        lam: weight of the easy tokens' mean; if there are none, or only such, all tokens weigh alike.
        groups: the tokens among which that holds; all together without.

    Returns:
        fp64, ``[t]``.

    >>> group_weights(torch.tensor([False, True, True, True]), 0.2).tolist()[0]
    0.8
    """
    groups = groups or Groups.one(hard)
    total = groups.sizes.double()
    hard_count = groups.sums(hard.double())
    easy_count = total - hard_count
    weights = torch.where(hard, total * (1.0 - lam) / hard_count, total * lam / easy_count)
    return torch.where((hard_count == 0) | (easy_count == 0), 1.0, weights)
