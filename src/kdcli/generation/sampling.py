"""Sampling that rounding errors of the logits almost never change, and that says when they might.

Tokens race: with waiting times E_k exponential with mean 1, argmin E_k / p_k is a draw from p (the exponential
form of the Gumbel-max trick; Maddison, Tarlow & Minka 2014, arXiv:1411.0030). Two logits that move by d can only
change the winner where it leads by less than exp(2d), whatever the size of the vocabulary; inverting the
cumulative distribution has a boundary at every token instead. The race is run in two stages, blocks of
neighbouring ids first, so that a few hundred random numbers suffice.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcli.config.sections import GenerationConfig
from kdcli.data.images import ImageInputs, RowImages
from kdcli.end_tokens import EndTokens

# The random numbers behind an answer: a pure function of seed, example and step, whatever else is answered.


BLOCK = 256
"""Neighbouring ids of the vocabulary that are drawn from together."""

_AT_ONCE = 4
"""Numbers that Philox makes from one count of its counter."""


def uniforms(seed: int, examples: Sequence[int], steps: int) -> NDArray[np.float64]:
    """Return numbers in [0, 1) that depend on seed, example and step alone.

    Args:
        seed: sampling seed, 0 to 2**63 - 1.
        examples: example numbers.
        steps: draws per example.

    Returns:
        draws of shape ``[len(examples), steps]``, from Philox keyed by (seed, example).

    >>> uniforms(10, [3], 2).tolist() == uniforms(10, [0, 3], 5)[1:, :2].tolist()
    True
    """
    bits = np.array([stream(seed, example).random_raw(steps) for example in examples], dtype=np.uint64)
    return np.asarray(bits >> np.uint64(11), dtype=np.float64) * 2.0**-53


def stream(seed: int, example: int, drawn: int = 0) -> np.random.Philox:
    """Return the generator of one answer's bits, as it is after so many numbers.

    >>> whole = stream(10, 3).random_raw(9)
    >>> bool((stream(10, 3, drawn=6).random_raw(3) == whole[6:]).all())
    True
    """
    found = np.random.Philox(key=np.array([seed, example], dtype=np.uint64), counter=drawn // _AT_ONCE)
    found.random_raw(drawn % _AT_ONCE)
    return found


def draws_per_token(ids: int) -> int:
    """Return how many numbers one token takes, given the entries of the vocabulary."""
    return BLOCK + blocks(ids)


def exponential_noise(streams: Sequence[np.random.Philox], ids: int) -> NDArray[np.float64]:
    """Draw the next step's waiting times of some answers, exponential with mean 1.

    Args:
        streams: one per answer, advanced by one step.
        ids: entries of the vocabulary.

    Returns:
        times of shape ``[len(streams), BLOCK + blocks]``: those within a block, then those of the blocks.

    >>> exponential_noise([stream(10, 3)], 1000).shape
    (1, 260)
    """
    count = draws_per_token(ids)
    bits = np.array([one.random_raw(count) for one in streams], dtype=np.uint64)
    return -np.log((np.asarray(bits >> np.uint64(12), dtype=np.float64) + 0.5) * 2.0**-52)


def blocks(ids: int) -> int:
    """Return how many blocks hold so many ids, at least two, so that there is always a second.

    >>> blocks(100), blocks(50257)
    (2, 197)
    """
    return max(2, -(-ids // BLOCK))


_LIKELIEST = 1024

COLDEST = 1e-30
"""Below it float32 holds no temperature; as cold as this, any other token than the likeliest has probability 0."""


@dataclass(frozen=True)
class Picks:
    """The next token of some rows.

    Args:
        tokens: token ids, ``[b]``.
        sure: whether logits within the tolerance would all give this token, ``[b]``.
    """

    tokens: Tensor
    sure: Tensor


def greedy(logits: Tensor, tolerance: Tensor) -> Picks:
    """Pick the likeliest tokens.

    Args:
        logits: shape ``[b, v]``, v at least 2.
        tolerance: by how much each logit of a row may be off, ``[b]``.
    """
    best = logits.topk(2, dim=-1).values
    return Picks(logits.argmax(-1), best[:, 0] - best[:, 1] > 2.0 * tolerance)


def sample(
    logits: Tensor, waits: Tensor, *, temperature: float, top_p: float = 1.0, tolerance: Tensor | None = None
) -> Picks:
    """Draw tokens.

    Args:
        logits: shape ``[b, v]``.
        waits: waiting times, float64, shape ``[b, 256 + blocks]``, as ``exponential_noise`` gives them.
        temperature: divides the logits; above 0.
        top_p: keep the smallest set of most likely tokens that has at least this mass.
        tolerance: by how much each logit of a row may be off, ``[b]``; None: not at all.

    >>> import numpy as np
    >>> from kdcli.generation.sampling import exponential_noise, stream
    >>> times = torch.from_numpy(exponential_noise([stream(0, example) for example in range(1000)], 2))
    >>> drawn = sample(torch.tensor([[0.0, 1.0]]).expand(1000, 2), times, temperature=1.0)
    >>> round(drawn.tokens.double().mean().item(), 2)  # sigmoid(1) = 0.73
    0.73
    """
    off = torch.zeros(len(logits)) if tolerance is None else tolerance.cpu()
    temperature = max(temperature, COLDEST)
    slack = torch.expm1(2.0 * off.double() / temperature)[:, None].to(logits.device)
    mass = _mass(logits, temperature, waits.shape[1] - BLOCK)
    least = most = mass
    if top_p < 1.0:
        least, most = _nuclei(mass, top_p, slack if tolerance is not None else None)
    rows = torch.arange(len(mass), device=mass.device)
    block, sure = _first(waits[:, BLOCK:], _totals(least), _totals(most), slack)
    token, certain = _first(waits[:, :BLOCK], least[rows, block].double(), most[rows, block].double(), slack)
    return Picks(block * BLOCK + token, sure & certain)


def choose(logits: Tensor, waits: Tensor | None, setting: GenerationConfig, tolerance: Tensor | None = None) -> Picks:
    """Pick tokens as a setting says, greedily where there are no waiting times."""
    if waits is None:
        return greedy(logits, torch.zeros(len(logits), device=logits.device) if tolerance is None else tolerance)
    return sample(logits, waits, temperature=setting.temperature, top_p=setting.top_p, tolerance=tolerance)


def _mass(logits: Tensor, temperature: float, blocks: int) -> Tensor:
    """Return ``exp((z - max z) / temperature)``, 0 beyond the vocabulary, ``[b, blocks, 256]``."""
    wide = logits.float()
    mass = wide.new_zeros(len(wide), blocks * BLOCK)
    real = mass[:, : wide.shape[1]]
    torch.sub(wide, wide.amax(-1, keepdim=True), out=real)
    real.div_(temperature).exp_()
    return mass.view(len(wide), blocks, BLOCK)


def _totals(mass: Tensor) -> Tensor:
    return mass.sum(-1).double()


def _first(times: Tensor, least: Tensor, most: Tensor, slack: Tensor) -> tuple[Tensor, Tensor]:
    """Return the token with the least waiting time at rates ``most``, and whether it stays so down to ``least``.

    Args:
        times: waiting times at speed 1, ``[b, k]``.
        least: lower bounds of the speeds, ``[b, k]``.
        most: upper bounds of the speeds, ``[b, k]``.
        slack: by what share a ratio of speeds may be off besides, ``[b, 1]``.
    """
    arrival = times / most
    two = arrival.topk(2, dim=-1, largest=False)
    winner = two.indices[:, :1]
    latest = times.gather(1, winner) / least.gather(1, winner)
    sure = latest * (1.0 + slack) < two.values[:, 1:]
    return winner.squeeze(1), sure.squeeze(1)


def _nuclei(mass: Tensor, top_p: float, slack: Tensor | None) -> tuple[Tensor, Tensor]:
    """Set to 0 what lies outside the smallest most likely set of mass ``top_p``; ties stay in.

    Returns:
        the mass of tokens that are inside whatever the tolerance does, and of those that may be.
    """
    flat = mass.flatten(1)
    total = flat.sum(-1, keepdim=True, dtype=torch.float64)
    ranked = _ranked(flat, top_p, total)
    before = (ranked.cumsum(-1, dtype=torch.float64) - ranked) / total

    whole = torch.full_like(total, top_p)
    if slack is None:
        inside = _at_least(ranked.gather(-1, _last(before, whole)), flat).view_as(mass)
        return inside, inside
    place = _last(before, whole - slack)
    edge, beyond = ranked.gather(-1, place), ranked.gather(-1, (place + 1).clamp(max=ranked.shape[1] - 1))
    tied = beyond >= edge * (1.0 - 2.0 * slack)
    may_be = _at_least(ranked.gather(-1, _last(before, whole + slack)) * (1.0 - slack), flat)
    surely = _at_least(edge.double().where(~tied, edge * (1.0 + slack)), flat)
    return surely.view_as(mass), may_be.view_as(mass)


def _last(before: Tensor, share: Tensor) -> Tensor:
    """Return the place of the last token that a nucleus of a share takes, given the shares of those before each."""
    return (before < share).sum(-1, keepdim=True).clamp(min=1) - 1


def _at_least(smallest: Tensor, flat: Tensor) -> Tensor:
    return flat.where(flat >= smallest.to(flat.dtype), 0.0)


def _ranked(mass: Tensor, top_p: float, total: Tensor) -> Tensor:
    """Return the largest masses, in falling order, as many as the nucleus may need."""
    ranked = mass.topk(min(_LIKELIEST, mass.shape[1]), dim=-1).values
    if (ranked.sum(-1, keepdim=True, dtype=torch.float64) < min(top_p + 0.01, 1.0) * total).any():
        return mass.sort(-1, descending=True).values
    return ranked


# One answer on its way.


@dataclass
class SequenceState:
    """The state of one sequence being generated.

    Args:
        place: the prompt's position in what was asked.
        prompt: its tokens.
        example: its number in the draws.
        seed: sampling seed.
        stream: random bits of this answer, as they are before its next token.
        most: tokens it may have, beside the bound that all answers share.
        generated: tokens so far, without the end token.
        end: the end token, if the model ended it.
        block: where in the answer the block begins that is still open; what lies before was read alone.
        settled: how many tokens are final, end token included; only counted where a batch proposes.
        images: those of the prompt; None for text alone.
        offset: by how much a token's position differs from the number of tokens before it.
    """

    place: int
    prompt: Sequence[int]
    example: int
    seed: int
    stream: np.random.Philox
    most: int | None = None
    generated: list[int] = field(default_factory=list)
    end: int | None = None
    block: int = 0
    settled: int = 0
    images: RowImages | None = None
    offset: int = 0

    @classmethod
    def waiting(
        cls,
        place: int,
        prompt: Sequence[int],
        example: int,
        seed: int,
        most: int | None = None,
        images: RowImages | None = None,
    ) -> "SequenceState":
        """Return an answer that has not begun."""
        return cls(place, prompt, example, seed, stream(seed, example), most, images=images)

    @property
    def image_inputs(self) -> ImageInputs | None:
        """What a model reads of the prompt besides its tokens; None for text alone."""
        return None if self.images is None else self.images.inputs(len(self.prompt))

    @property
    def ended(self) -> bool:
        """Whether the model ended it."""
        return self.end is not None

    @property
    def tokens(self) -> list[int]:
        """The generated tokens, end token included."""
        return self.generated if self.end is None else [*self.generated, self.end]

    def take(self, token: int, ends: EndTokens) -> None:
        """Append a token, or end the sequence with it."""
        if token in ends:
            self.end = token
        else:
            self.generated.append(token)

    def correct(self, at: int, token: int, ends: EndTokens, ids: int) -> None:
        """Replace an earlier token and drop those after it.

        Args:
            at: which token of the answer.
            token: the one that is right there.
            ends: tokens that end an answer.
            ids: entries of the vocabulary, from which follows how many numbers a token takes.
        """
        self.end = None
        del self.generated[at:]
        self.stream = self.stream_before(at + 1, ids)
        self.take(token, ends)

    def stream_before(self, token: int, ids: int) -> np.random.Philox:
        """Return the random bits as they are before a token of the answer."""
        return stream(self.seed, self.example, token * draws_per_token(ids))
