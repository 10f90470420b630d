"""The knobs of MiniLLM's policy gradient, and where the paper and its published code set them."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

SingleWeight: TypeAlias = Literal["none", "step", "prefix"]
LongWeight: TypeAlias = Literal["none", "step", "prefix"]
Whiten: TypeAlias = Literal["none", "tokens", "padded"]
Student: TypeAlias = Literal["now", "sampling"]
Variant: TypeAlias = Literal["paper", "lmops", "single"]


@dataclass(frozen=True)
class Knobs:
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


VARIANTS: dict[Variant, Knobs] = {
    "paper": Knobs(),
    "lmops": Knobs(
        rewards="sampling", include_present=True, gamma=0.95, reward_scale=0.5, reward_clip=100.0, whiten="padded"
    ),
    "single": Knobs(long=False),
}
"""What each variant sets."""
