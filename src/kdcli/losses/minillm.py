"""MiniLLM: the reverse KL of whole sequences, by a policy gradient on sampled sequences."""

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Annotated, ClassVar, Literal, TypeAlias

import torch
from pydantic import Field, model_validator
from torch import Tensor

from kdcli.losses.base import DistillLoss, Facts, Needs, Tokens, finite_logits, log_softmax
from kdcli.losses.divergences.kl import ReverseKL
from kdcli.losses.divergences.ops import kl
from kdcli.losses.groups import AMONG, Groups
from kdcli.losses.token_facts import BEHAVIOUR_LOGP, STUDENT_LOGP
from kdcli.shapes import TokenValues

# The knobs of MiniLLM's policy gradient, and where the paper and its published code set them.


SingleWeight: TypeAlias = Literal["none", "step", "prefix"]
LongWeight: TypeAlias = Literal["none", "step", "prefix"]
Whiten: TypeAlias = Literal["none", "tokens", "padded"]
Student: TypeAlias = Literal["now", "sampling"]
Variant: TypeAlias = Literal["paper", "lmops", "single"]


@dataclass(frozen=True)
class MiniLLMOptions:
    """How the two parts are taken; the defaults are the paper's.

    Args:
        single: take the single-step part, the reverse KL over the whole vocabulary.
        long: take the long part, the policy gradient of the tokens that were drawn.
        single_weight: of a token's single-step part: 1, its own q / p~, or the product of all earlier ones.
        long_weight: what the ratio of the long part corrects: drift of the student alone, q / p~ of the token,
            or that of the whole prefix and of every later reward.
        rewards: the student whose log-probability is in the reward.
        include_present: whether the return holds the token's own reward.
        gamma: discount per step.
        length_norm: divide the return by the number of rewards in it.
        reward_scale: what rewards are divided by.
        reward_clip: bound of a reward's size; 0 for none.
        whiten: bring returns to mean 0 and variance 1 over the micro-batch, its padding counted or not.
        clip: how far the ratio may leave 1 and still be followed; 0 for as far as it likes.
    """

    single: bool = True
    long: bool = True
    single_weight: SingleWeight = "none"
    long_weight: LongWeight = "step"
    rewards: Student = "now"
    include_present: bool = False
    gamma: float = 1.0
    length_norm: bool = True
    reward_scale: float = 1.0
    reward_clip: float = 0.0
    whiten: Whiten = "none"
    clip: float = 0.2


VARIANTS: dict[Variant, MiniLLMOptions] = {
    "paper": MiniLLMOptions(),
    "lmops": MiniLLMOptions(
        rewards="sampling", include_present=True, gamma=0.95, reward_scale=0.5, reward_clip=100.0, whiten="padded"
    ),
    "single": MiniLLMOptions(long=False),
}
"""What each variant sets."""


# Sums over the rest of a sequence, for all sequences of a micro-batch at once; the host reads nothing.


_VARIANCE_FLOOR = 1e-8


def reward_to_go(rewards: Tensor, laid: Groups, gamma: float, factors: Tensor | None = None) -> Tensor:
    """Return U_t = r_t + gamma c_(t+1) U_(t+1), 0 after the last token of a sequence.

    Without factors that is the sum over t' >= t of gamma^(t' - t) r_t', whose discount counts from t, not from
    the beginning of the sequence.

    Args:
        rewards: ``[n]``.
        laid: the sequences, the tokens of one in their order.
        gamma: discount per step.
        factors: c, ``[n]``; None for 1.

    >>> reward_to_go(torch.tensor([1.0, 2.0, 4.0]), Groups.by(torch.tensor([0, 0, 0])), 0.5).tolist()
    [3.0, 4.0, 4.0]
    """
    carried = shifted(torch.full_like(rewards, gamma) if factors is None else gamma * factors, laid)
    return laid.unsorted(_recurred(laid.sorted(rewards), laid.sorted(carried)))


def _recurred(own: Tensor, carried: Tensor) -> Tensor:
    """Return U_t = own_t + carried_t U_(t+1), ``[n]``, each pass doubling how far ahead is looked.

    Where nothing is carried, a number ahead that is not finite does no harm: it is of another sequence.
    """
    step = 1
    while step < len(own):
        ahead, further = (torch.cat((side[step:], side.new_zeros(step))) for side in (own, carried))
        apart = carried == 0
        own = own + (carried * ahead).masked_fill(apart, 0.0)
        carried = (carried * further).masked_fill(apart, 0.0)
        step *= 2
    return own


def shifted(values: Tensor, laid: Groups) -> Tensor:
    """Return the next token's numbers, 0 after the last one of a sequence, ``[n]``.

    >>> shifted(torch.tensor([1.0, 2.0, 4.0]), Groups.by(torch.tensor([0, 0, 5]))).tolist()
    [2.0, 0.0, 0.0]
    """
    ahead = laid.sorted(values)
    ahead = torch.cat((ahead[1:], torch.zeros_like(ahead[:1])))
    return torch.where(laid.places + 1 < laid.sizes, laid.unsorted(ahead), 0.0)


def weights_before(log_weights: Tensor, laid: Groups) -> Tensor:
    """Return the product of all earlier tokens' weights in a sequence, 1 for the first one, ``[n]``.

    Args:
        log_weights: logarithms, ``[n]``.
        laid: the sequences.

    >>> weights_before(torch.tensor([2.0, 3.0, 5.0]).log(), Groups.by(torch.tensor([0, 0, 0]))).tolist()
    [1.0, 2.0, 6.0]
    """
    logs = laid.sorted(log_weights)
    first = laid.sorted(laid.places) == 0
    before = torch.where(first, 0.0, torch.cat((torch.zeros_like(logs[:1]), logs[:-1])))
    carried = (~first).to(logs.dtype)
    return laid.unsorted(_recurred(before.flip(0), carried.flip(0)).flip(0)).exp()


def whitened(values: Tensor, padding: int | Tensor = 0, among: Tensor | None = None) -> Tensor:
    """Return values less their mean, over their standard deviation.

    Args:
        values: ``[n]``.
        padding: so many zeros are counted among them.
        among: which of them are counted, ``[n]``; all without.

    >>> [round(value, 3) for value in whitened(torch.tensor([1.0, 3.0])).tolist()]
    [-1.0, 1.0]
    """
    counted = values if among is None else torch.where(among, values, 0.0)
    count = (len(values) if among is None else among.sum()) + padding
    mean = counted.sum() / count
    apart = (values - mean) ** 2
    total = (apart if among is None else torch.where(among, apart, 0.0)).sum()
    return (values - mean) * torch.rsqrt((total + padding * mean**2) / count + _VARIANCE_FLOOR)


_OF_LONG = (
    "long_weight", "rewards", "include_present", "gamma", "length_norm",
    "reward_scale", "reward_clip", "whiten", "clip",
)  # fmt: skip
_REVERSE = ReverseKL()


class MiniLLM(DistillLoss):
    """Reverse KL of whole sequences: a single-step part over the vocabulary, a long part on the tokens drawn.

    With r_t = log p(y_t) - log q(y_t), p~ what the tokens were drawn from, and rho_t = q(y_t) / p~(y_t)::

        L_t = KL(q || p)_t - min(rho_t A_t, clip(rho_t, 1 - clip, 1 + clip) A_t)
        A_t = (r_(t+1) + ... + r_T) / max(T - t, 1)

    The single-step part takes all that a token's own distribution decides exactly; A_t carries what its choice
    does to the rest of the sequence, and has no gradient. ``variant`` sets the knobs as the paper, as its published
    code, or to the single-step part alone, which is the reverse KL on the student's own words; each of them can be
    set by itself. The page on MiniLLM says what is exact and where the two differ.

    Needs a source that draws sequences and supplies the log-probabilities they were drawn with, such as ``rollout``.

    >>> loss = MiniLLM(clip=0)
    >>> tok = Tokens(torch.tensor([0]), torch.zeros(1, 2), torch.tensor([[0.9, 0.1]]).log(),
    ...     {"advantage": torch.tensor([-2.0]), "ratio_to": torch.tensor([0.5]).log()})
    >>> {name: round(value.item(), 4) for name, value in loss.parts(tok).items()}  # KL = 0.5108, rho = 1
    {'single': 0.5108, 'long': 2.0}
    """

    name: ClassVar[str] = "minillm"
    formula: ClassVar[str] = (
        "KL(q || p) - min(rho A, clip(rho) A), rho = q_y / p~_y, A = mean of later log p_y - log q_y"
    )
    reference: ClassVar[str] = "Gu et al. 2024 (MiniLLM), arXiv:2306.08543, eqs. 3 to 7 and algorithm 1"
    cost: ClassVar[str] = "about 30 FLOP a vocabulary entry; a survey pass over the heads"

    variant: Annotated[
        Variant, Field(description="defaults of the other options: the paper's, its code's, or single-step")
    ] = "paper"
    single: Annotated[bool | None, Field(description="take the single-step part; all variants do")] = None
    long: Annotated[bool | None, Field(description="take the long part; all variants but single do")] = None
    single_weight: Annotated[
        SingleWeight | None,
        Field(description="weight of the single-step part: none, q/p~ of the step, or of the prefix before it"),
    ] = None
    long_weight: Annotated[
        LongWeight | None,
        Field(description="ratio of the long part: none to what drew the token, of the step, or of the whole prefix"),
    ] = None
    rewards: Annotated[
        Student | None, Field(description="student in the reward: as it is now, or as it was when it drew (lmops)")
    ] = None
    include_present: Annotated[
        bool | None, Field(description="count the token's own reward into its return (lmops does)")
    ] = None
    gamma: Annotated[float | None, Field(ge=0, le=1, description="discount per step; 1, for lmops 0.95")] = None
    length_norm: Annotated[bool | None, Field(description="divide a return by its number of rewards; all do")] = None
    reward_scale: Annotated[float | None, Field(gt=0, description="rewards are divided by this; 1, for lmops 0.5")] = (
        None
    )
    reward_clip: Annotated[float | None, Field(ge=0, description="bound of a reward; 0: none, for lmops 100")] = None
    whiten: Annotated[
        Whiten | None, Field(description="standardise returns over the micro-batch's tokens, or with padding (lmops)")
    ] = None
    clip: Annotated[float | None, Field(ge=0, description="PPO's bound on |rho - 1|; 0: none, else 0.2")] = None

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> "MiniLLM":
        if not (self.knobs.single or self.knobs.long):
            raise ValueError("neither part is left: single and long are both off")
        given = [name for name in _OF_LONG if getattr(self, name) is not None]
        if given and not self.knobs.long:
            raise ValueError(f"{' and '.join(given)} would be ignored: the long part is off")
        if self.single_weight is not None and not self.knobs.single:
            raise ValueError("single_weight would be ignored: the single-step part is off")
        return self

    @cached_property
    def knobs(self) -> MiniLLMOptions:
        """The variant's options, with those that were given in their place."""
        given = {name: getattr(self, name) for name in asdict(MiniLLMOptions()) if getattr(self, name) is not None}
        return replace(VARIANTS[self.variant], **given)

    @property
    def _weighs(self) -> bool:
        """Whether log-probabilities of the draw are read."""
        return self.knobs.long or self.knobs.single_weight != "none"

    def needs(self) -> Needs:
        """Ask for sequences that were drawn, and for a survey of both sides where anything is weighed or rewarded."""
        if not self._weighs:
            return Needs(drawn=True)
        return Needs(survey="both", facts=frozenset({BEHAVIOUR_LOGP, STUDENT_LOGP}), drawn=True)

    def survey(self, tok: Tokens) -> Facts:
        """Return both sides' log-probabilities of the labels."""
        if not self._weighs:
            return {}
        student, teacher = tok.log_probs()
        label = tok.labels[:, None]
        return {"now_logp": student.gather(1, label)[:, 0], "teacher_logp": teacher.gather(1, label)[:, 0]}

    def plan(self, facts: Facts) -> Facts:
        """Return each token's advantage, what its ratio is taken to, and its weight; none has a gradient."""
        if not self._weighs:
            return {}
        knobs, laid = self.knobs, Groups.of(facts, "sequence")
        now, drawn_by = facts["now_logp"], facts[BEHAVIOUR_LOGP].to(facts["now_logp"].dtype)
        then = facts[STUDENT_LOGP].to(now.dtype)
        log_weight = (now if knobs.rewards == "now" else then) - drawn_by
        before = weights_before(log_weight, laid)
        planned = {"ratio_to": then if knobs.long_weight == "none" else drawn_by}
        if knobs.single_weight != "none":
            planned["single_weight"] = before if knobs.single_weight == "prefix" else torch.exp(now - drawn_by)
        if knobs.long:
            rewards = facts["teacher_logp"] - (now if knobs.rewards == "now" else then)
            factors = log_weight.exp() if knobs.long_weight == "prefix" else None
            returns = self._returns(rewards, laid, factors, facts.get(AMONG))
            planned["advantage"] = returns * before if knobs.long_weight == "prefix" else returns
        return planned

    @property
    def plans_among(self) -> bool:
        """Whether it can plan for some of the tokens: it can."""
        return True

    def _returns(self, rewards: Tensor, laid: Groups, factors: Tensor | None, among: Tensor | None) -> Tensor:
        knobs, remaining = self.knobs, laid.sizes - laid.places
        rewards = rewards / knobs.reward_scale
        if knobs.reward_clip > 0:
            rewards = rewards.clamp(-knobs.reward_clip, knobs.reward_clip)
        values = reward_to_go(rewards, laid, knobs.gamma, factors)
        if not knobs.include_present:
            values, remaining = shifted(values if factors is None else factors * values, laid), remaining - 1
        if knobs.length_norm:
            values = values / remaining.clamp(min=1)
        if knobs.whiten == "none":
            return values
        return whitened(values, _padding(laid, among) if knobs.whiten == "padded" else 0, among)

    def token_loss(self, tok: Tokens) -> TokenValues:
        """Return the sum of the parts taken."""
        first, *others = self.parts(tok).values()
        return sum(others, start=first)

    def parts(self, tok: Tokens) -> dict[str, Tensor]:
        """Return the single-step part and the long part of each token, those that are taken."""
        assert tok.teacher is not None, "needs().teacher is declared"
        found: dict[str, Tensor] = {}
        if self.knobs.single:
            value = kl(finite_logits(tok.student), finite_logits(tok.teacher.detach()))
            found["single"] = value * tok.facts["single_weight"] if "single_weight" in tok.facts else value
        if self._weighs:
            now = log_softmax(tok.student).gather(1, tok.labels[:, None])[:, 0]
            self._log(tok, now.detach())
            if self.knobs.long:
                found["long"] = self._long(tok, now)[0]
        return found

    @torch.no_grad()
    def parts_and_grad(self, tok: Tokens) -> tuple[dict[str, Tensor], Tensor] | None:
        """Return both parts and their gradient: that of the reverse KL, and rho A (q - 1[y]) where rho is followed."""
        if not self.knobs.single:
            return None
        label, log_q = tok.labels[:, None], log_softmax(tok.student) if self._weighs else None
        closed = _REVERSE.parts_and_grad(tok)
        if closed is None:
            return None
        found, grad = {"single": closed[0][_REVERSE.name]}, closed[1]
        if log_q is None:
            return found, grad
        if "single_weight" in tok.facts:
            weight = tok.facts["single_weight"].to(grad.dtype)
            found["single"], grad = found["single"] * weight, grad * weight[:, None]
        now = log_q.gather(1, label)[:, 0]
        self._log(tok, now)
        if self.knobs.long:
            found["long"], pull = self._long(tok, now)
            pull = pull[:, None].to(grad.dtype)
            grad = grad.addcmul(log_q.exp(), pull).scatter_add_(1, label, -pull)
        return found, grad

    def _long(self, tok: Tokens, now: Tensor) -> tuple[Tensor, Tensor]:
        """Return the long part, and minus its slope in log q_y, each ``[t]``."""
        advantage, bound = tok.facts["advantage"], self.knobs.clip
        rho = torch.exp(now - tok.facts["ratio_to"].to(now.dtype))
        gain = rho * advantage
        if bound == 0:
            return -gain, gain.detach()
        held = rho.clamp(1.0 - bound, 1.0 + bound) * advantage
        followed = (gain <= held).detach()
        tok.logged[f"{self.name}.clipped"] = (~followed).to(gain.dtype)
        return -torch.minimum(gain, held), torch.where(followed, gain, 0.0).detach()

    def _log(self, tok: Tokens, now: Tensor) -> None:
        """Follow the ratio to what drew the tokens, and the reverse KL as the tokens drawn estimate it (k3)."""
        if BEHAVIOUR_LOGP not in tok.facts:
            return
        rho = torch.exp(now - tok.facts[BEHAVIOUR_LOGP].to(now.dtype))
        reward = tok.facts["teacher_logp"] - now
        tok.logged[f"{self.name}.rho"] = rho
        tok.logged[f"{self.name}.k3"] = rho * (torch.expm1(reward) - reward)


def _padding(laid: Groups, among: Tensor | None) -> Tensor:
    """Return how many places of a table of sequences as long as the longest hold no token."""
    counted = torch.ones_like(laid.sizes, dtype=torch.bool) if among is None else among
    longest = torch.where(counted, laid.sizes, 0).amax()
    return ((laid.places == 0) & counted).sum() * longest - counted.sum()
