"""The interface of losses: what a loss gets, returns and declares."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, TypeAlias

import torch
from torch import Tensor, nn

from kdcli.losses.topk import TopKWithTail
from kdcli.registry.options import Plugin, earlier_names
from kdcli.shapes import Logits, TeacherLogits, TokenLabels, TokenValues

# Layers inside the two models: how many there are, which are compared, and what they hold.


Pair: TypeAlias = tuple[int, int]
"""A student's layer and the teacher's that it is compared with."""


@dataclass(frozen=True)
class ModelShape:
    """Sizes of one model.

    Args:
        layers: blocks of the trunk. Layer 0 is what the first block reads, layer l what block l gives.
        width: numbers in a hidden state.
        heads: attention heads of a block.
    """

    layers: int
    width: int
    heads: int


@dataclass(frozen=True)
class Dims:
    """Sizes of student and teacher."""

    student: ModelShape
    teacher: ModelShape


@dataclass(frozen=True)
class Layers:
    """Which layers of one model are asked for.

    Args:
        hidden: those whose hidden states are.
        attention: those whose attention maps are.
    """

    hidden: frozenset[int] = frozenset()
    attention: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Matches:
    """Which layers an objective compares.

    Args:
        hidden: pairs whose hidden states are compared.
        attention: pairs whose attention maps are compared.

    >>> (Matches(hidden=frozenset({(1, 2)})) | Matches(hidden=frozenset({(2, 4)}))).teacher.hidden == {2, 4}
    True
    """

    hidden: frozenset[Pair] = frozenset()
    attention: frozenset[Pair] = frozenset()

    def __or__(self, other: "Matches") -> "Matches":
        return Matches(self.hidden | other.hidden, self.attention | other.attention)

    @property
    def student(self) -> Layers:
        """The student's layers."""
        return self._side(0)

    @property
    def teacher(self) -> Layers:
        """The teacher's layers."""
        return self._side(1)

    def _side(self, index: int) -> Layers:
        return Layers(frozenset(pair[index] for pair in self.hidden), frozenset(pair[index] for pair in self.attention))


@dataclass(frozen=True)
class Inner:
    """What the layers of one model hold at some tokens.

    Args:
        hidden: by layer, shape ``[t, d]``.
        attention: by layer, each token's row of every head's map, shape ``[t, h, s]``; 0 where it may not look.
    """

    hidden: Mapping[int, Tensor]
    attention: Mapping[int, Tensor]

    def __getitem__(self, rows: Tensor) -> "Inner":
        return self.map(lambda value: value[rows])

    def map(self, change: Callable[[Tensor], Tensor]) -> "Inner":
        """Return it with every tensor changed."""
        hidden = {layer: change(value) for layer, value in self.hidden.items()}
        return Inner(hidden, {layer: change(value) for layer, value in self.attention.items()})

    @property
    def tensors(self) -> list[Tensor]:
        """All of them, hidden states first, by layer."""
        return [value[layer] for value in (self.hidden, self.attention) for layer in sorted(value)]


@dataclass(frozen=True)
class Features:
    """The inside of both models at some tokens.

    Args:
        student: with gradient.
        teacher: without.
        reach: how many tokens each one may look at, itself included, shape ``[t]``.
        dims: sizes of both models.
        modules: the learned parts of the loss in hand.
    """

    student: Inner
    teacher: Inner
    reach: Tensor
    dims: Dims
    modules: nn.ModuleDict

    def __getitem__(self, rows: Tensor) -> "Features":
        return replace(self, student=self.student[rows], teacher=self.teacher[rows], reach=self.reach[rows])

    def within(self, label: str) -> "Features":
        """Return them as the loss of that label inside the loss in hand sees them."""
        inner = self.modules[label] if label in self.modules else nn.ModuleDict()
        assert isinstance(inner, nn.ModuleDict), "modules() answers a ModuleDict"
        return replace(self, modules=inner)


def wide(value: Tensor) -> Tensor:
    """Return a tensor in fp32, or in fp64 if it is."""
    return value if value.dtype == torch.float64 else value.float()


# Logits and log-probabilities in at least fp32, finite where a logit is minus infinity.


FILTERED = -1e30
"""Stands in for a logit of minus infinity: its probability is exactly 0 and its gradient is 0."""


def log_softmax(logits: Logits, tau: float = 1.0) -> Logits:
    """Log-probabilities at a temperature, at least in fp32, finite where a logit is minus infinity.

    >>> log_softmax(torch.tensor([[0.0, float("-inf")]])).tolist()
    [[0.0, -1.0000000150474662e+30]]
    """
    finite = finite_logits(logits)
    return torch.log_softmax(finite if tau == 1.0 else finite / tau, dim=-1)


def finite_logits(logits: Logits) -> Logits:
    """Logits in fp32 or wider, with FILTERED for minus infinity."""
    wide = widen(logits)
    return torch.where(torch.isneginf(wide), FILTERED, wide)


def widen(logits: Tensor) -> Tensor:
    """Logits in fp32, or in fp64 if they are."""
    return logits if logits.dtype == torch.float64 else logits.float()


# What an objective asks of the engine.


_WIDTH = {"none": 0, "teacher": 1, "both": 2}


@earlier_names(whole="full_distribution", known="min_top_k")
@dataclass(frozen=True)
class Needs:
    """What an objective asks of the engine before it can run.

    Args:
        teacher: teacher logits are read.
        survey: whose logits the survey pass reads, or "none" for no survey pass.
        facts: per-token facts the source must supply.
        origins: whose words the source must supply, names of ``supplied.ORIGINS``; empty where any will do.
        drawn: sequences must be drawn from a model; rows of a data set will not do.
        same_tokens: the teacher, if one is read, must have the student's tokenizer.
        right_labels: the labels are learnt as right answers, whoever wrote them.
        min_top_k: fewest tokens of the teacher that must be known where the rest is one bin.
        full_distribution: why every logit of the teacher must be known; empty where its top k tokens and one bin for
            the rest do.
        logits: it has a value of the student's logits; False if all it compares are layers inside the models.
        features: what of the models' inside is compared: "hidden", "attention".
    """

    teacher: bool = True
    survey: Literal["none", "teacher", "both"] = "none"
    facts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    full_distribution: str = "it reads single logits of the teacher"
    min_top_k: int = 1
    logits: bool = True
    features: frozenset[str] = frozenset()
    drawn: bool = False
    same_tokens: bool = True
    right_labels: bool = False

    def __or__(self, other: "Needs") -> "Needs":
        survey = self.survey if _WIDTH[self.survey] >= _WIDTH[other.survey] else other.survey
        reasons = [one.full_distribution for one in (self, other) if one.teacher and one.full_distribution]
        full = "; ".join(dict.fromkeys(reasons))
        facts, origins = self.facts | other.facts, self.origins | other.origins
        top_k, logits = max(self.min_top_k, other.min_top_k), self.logits or other.logits
        features, drawn = self.features | other.features, self.drawn or other.drawn
        same = any(one.same_tokens for one in (self, other) if one.anything_of_teacher)
        right = self.right_labels or other.right_labels
        return Needs(
            self.teacher or other.teacher, survey, facts, origins, full, top_k, logits, features, drawn, same, right
        )

    @property
    def anything_of_teacher(self) -> bool:
        """Whether a teacher is read at all, its logits or its inside."""
        return self.teacher or bool(self.features)


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
        logged: what a loss wants logged over training, written by it while it computes: ``name.what`` -> ``[t]``,
            without gradient. The log has means over tokens; they are never summed into the loss.
        progress: share of the run that is done, 0 at its first step and 1 at its last.
        features: the inside of both models, while terms on features are taken; ``student`` then has no columns.
    """

    labels: TokenLabels
    student: Logits
    teacher: TeacherLogits | None = None
    facts: Facts = field(default_factory=dict)
    logged: dict[str, Tensor] = field(default_factory=dict)
    coarse: TopKWithTail | None = None
    progress: float = 0.0
    features: Features | None = None

    @property
    def watched(self) -> dict[str, Tensor]:
        """The earlier name of ``logged``, for plug-ins that write into it."""
        return self.logged

    def log_probs(self, tau: float = 1.0) -> tuple[Logits, TeacherLogits]:
        """Return ``(student, teacher)`` log-probabilities at temperature ``tau``; no gradient reaches the teacher."""
        assert self.teacher is not None, "the objective declared needs().teacher = False"
        return log_softmax(self.student, tau), log_softmax(self.teacher.detach(), tau)


class DistillLoss(Plugin, ABC):
    """An objective's value for each token; its fields are its options.

    Subclasses are final: to change behaviour, wrap. They hold no state, so an instance is
    hashable, printable and picklable.

    Class attributes:
        name: the registered name.
        formula: one line of mathematics, p the teacher, q the student, z its logits.
        reference: paper and equation.
        cost: arithmetic per vocabulary entry and what else it spends.
        zero_at_equal: whether it is never negative, and 0 where student and teacher are equal, if so are those inside.
        between_bins: whether it is itself a function of two distributions, and so of their k + 1 bins.
    """

    part: ClassVar[str] = "loss"
    zero_at_equal: ClassVar[bool] = False
    between_bins: ClassVar[bool] = False

    @property
    def summands(self) -> tuple[tuple[float, "DistillLoss"], ...]:
        """The weighted losses that it is the sum of: itself, unless it is a sum."""
        return ((1.0, self),)

    @property
    def plans_among(self) -> bool:
        """Whether :meth:`plan` uses the fact ``among``, the mark of tokens to plan for; true if it plans nothing."""
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
