"""How much each word of a prompt moves a model's answer: gradients over the embeddings, and controls without any."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from kdcli.losses.base import widen
from kdcli.models.head import trunk_of
from kdcli.models.internals import eval_mode
from kdcli.models.load import LanguageModel
from kdcli.registry.options import Plugin
from kdcli.scores.base import label_log_probs

_TOKENS_AT_ONCE = 4096


class AnswerScore:
    """The log-probability of an answer behind embeddings of its prompt, differentiable in these.

    Args:
        model: whose answer it is; its parameters take no gradient.
        prompt: token ids.
        answer: token ids, at least one.
    """

    def __init__(self, model: LanguageModel, prompt: Sequence[int], answer: Sequence[int]) -> None:
        self._model = model
        device = model.head.weight.device
        self._table: Any = model.model.get_input_embeddings()
        self._answer = torch.tensor(list(answer), device=device)
        with torch.no_grad():
            self.embedded: Float[Tensor, "n d"] = self._table(torch.tensor(list(prompt), device=device))
            self._behind = self._table(self._answer)[:-1]

    def __call__(self, embedded: Float[Tensor, "b n d"]) -> Float[Tensor, " b"]:
        """Return the sum of the answer's log-probabilities for each of several embedded prompts."""
        count, size = embedded.shape[:2]
        whole = torch.cat((embedded, self._behind.expand(count, -1, -1)), 1)
        mask = torch.ones(whole.shape[:2], dtype=torch.int64, device=whole.device)
        with eval_mode(self._model.model):
            trunk: Any = trunk_of(self._model.model)
            hidden = trunk(inputs_embeds=whole, attention_mask=mask, use_cache=False).last_hidden_state[:, size - 1 :]
        logits = widen(self._model.logits(hidden)).flatten(0, 1)
        return label_log_probs(logits, self._answer.repeat(count)).view(count, -1).sum(1)

    def baseline(self, kind: str) -> Float[Tensor, " d"]:
        """Return the embedding that stands for no word: 0, that of the padding token, or the mean of all."""
        if kind == "pad":
            return self._table.weight[self._model.pad_id].detach()
        return self._table.weight.mean(0).detach() if kind == "mean" else torch.zeros_like(self.embedded[0])

    @property
    def at_once(self) -> int:
        """Prompts that are read together."""
        return max(1, _TOKENS_AT_ONCE // (len(self.embedded) + len(self._answer)))


def slopes(score: AnswerScore, embedded: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
    """Return the gradient of each prompt's score over its embeddings."""
    leaf = embedded.detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(score(leaf).sum(), leaf)[0]


def integrated(score: AnswerScore, baseline: Float[Tensor, " d"], steps: int) -> tuple[Float[Tensor, " n"], float]:
    """Return integrated gradients of each prompt token, by the midpoint rule, and how far they miss completeness.

    ``IG_i = (e_i - b) . (1/S) sum_j grad_i s(b + (j - 1/2)/S (e - b))``; their sum is s(e) - s(b) but for the rule's
    error, which is given as a share of it.

    Args:
        score: of the answer.
        baseline: the embedding that stands for no word.
        steps: S.
    """
    way = score.embedded - baseline
    shares = [(step + 0.5) / steps for step in range(steps)]
    total = torch.zeros_like(way, dtype=torch.float64)
    for start in range(0, steps, score.at_once):
        part = torch.tensor(shares[start : start + score.at_once], dtype=way.dtype, device=way.device)
        total += slopes(score, baseline + part[:, None, None] * way).double().sum(0)
    found = (way.double() * total / steps).sum(-1)
    with torch.no_grad():
        ends = score(torch.stack((score.embedded, baseline.expand_as(way)))).double()
    whole = (ends[0] - ends[1]).item()
    return found, abs(found.sum().item() - whole) / max(abs(whole), 1e-12)


@dataclass
class WordsOfPrompt:
    """The words of a prompt that may become its rationale.

    Args:
        words: as they stand, in text order.
        tokens: of each word the places of its tokens in the prompt.
        prompt: token ids.
        answer: token ids, without the end token.
        key: what names the row.
        model: who answers; None where no weights are read.
        frequency: rows of the file that have a word, by the word in lower case.
        gap: how far integrated gradients miss completeness; None where none were taken.
    """

    words: Sequence[str]
    tokens: Sequence[Sequence[int]]
    prompt: Sequence[int]
    answer: Sequence[int]
    key: str
    model: LanguageModel | None = None
    frequency: Mapping[str, int] = field(default_factory=dict)
    gap: float | None = None

    @property
    def score(self) -> AnswerScore:
        """The answer's log-probability, differentiable in the prompt's embeddings."""
        assert self.model is not None, "the attribution declares reads_model"
        return AnswerScore(self.model, self.prompt, self.answer)

    def summed(self, each: Tensor) -> list[float]:
        """Return the sum of a number of each token over each word's tokens."""
        return [each[list(places)].double().sum().item() for places in self.tokens]


class Attribution(Plugin, ABC):
    """A way to say how much each word of a prompt matters; its fields are its options.

    Class attributes:
        reads_model: whether the teacher's weights are read.
    """

    part: ClassVar[str] = "attribution"
    reads_model: ClassVar[bool] = True

    @abstractmethod
    def measure(self, row: WordsOfPrompt) -> list[float]:
        """Return a number of each word, the higher the more it matters."""


class Gradient(Attribution):
    """Length of the gradient of the answer's log-probability over the token's embedding."""

    name: ClassVar[str] = "grad"

    def measure(self, row: WordsOfPrompt) -> list[float]:
        """Return the sum over each word's tokens."""
        score = row.score
        return row.summed(slopes(score, score.embedded[None])[0].norm(dim=-1))


class GradientTimesInput(Attribution):
    """Product of gradient and embedding: the change of the score, to first order, on the way from 0."""

    name: ClassVar[str] = "grad_x_input"

    sign: Annotated[Literal["both", "positive"], Field(description="both by size, or what helps the answer only")] = (
        "both"
    )

    def measure(self, row: WordsOfPrompt) -> list[float]:
        """Return the sum of sizes over each word's tokens, or of what is above 0."""
        score = row.score
        each = (slopes(score, score.embedded[None])[0] * score.embedded).sum(-1)
        return row.summed(each.abs() if self.sign == "both" else each.clamp_min(0.0))


class IntegratedGradients(Attribution):
    """Gradients along the straight way from a baseline to the embedding, times that way.

    The baseline is the mean embedding: from 0, a norm that divides by an embedding's length leaves all of the way but
    its very beginning flat, and no number of steps is enough.
    """

    name: ClassVar[str] = "ig"

    steps: Annotated[int, Field(ge=1, le=4096, description="points of the midpoint rule")] = 32
    baseline: Annotated[Literal["zero", "pad", "mean"], Field(description="what stands for no word")] = "mean"

    def measure(self, row: WordsOfPrompt) -> list[float]:
        """Return the sum of sizes over each word's tokens, and keep the gap of completeness."""
        score = row.score
        each, row.gap = integrated(score, score.baseline(self.baseline), self.steps)
        return row.summed(each.abs())


class Occlusion(Attribution):
    """What the answer's log-probability loses when the word's tokens are left out of the prompt."""

    name: ClassVar[str] = "occlusion"

    @torch.no_grad()
    def measure(self, row: WordsOfPrompt) -> list[float]:
        """Return the loss of each word; one forward pass for each."""
        score = row.score
        whole, found = score(score.embedded[None])[0].item(), []
        for places in row.tokens:
            rest = [at for at in range(len(row.prompt)) if at not in set(places)]
            found.append(whole - score(score.embedded[rest][None])[0].item() if rest else 0.0)
        return found


class RandomWords(Attribution):
    """Words by lot: a control."""

    name: ClassVar[str] = "random"
    reads_model: ClassVar[bool] = False

    seed: Annotated[int, Field(ge=0, description="of the draw")] = 0

    def measure(self, row: WordsOfPrompt) -> list[float]:
        """Return a number from 0 to 1 that follows from seed, row and place."""
        texts = (f"{self.seed} {row.key} {place}".encode() for place in range(len(row.words)))
        return [int.from_bytes(hashlib.sha256(text).digest()[:8], "big") / 2**64 for text in texts]


class FirstWords(Attribution):
    """The first words of the prompt: a control."""

    name: ClassVar[str] = "first"
    reads_model: ClassVar[bool] = False

    def measure(self, row: WordsOfPrompt) -> list[float]:
        """Return a number that falls from word to word."""
        return [-float(place) for place in range(len(row.words))]


class RareWords(Attribution):
    """The words that occur in the fewest rows of the file: a control."""

    name: ClassVar[str] = "rare"
    reads_model: ClassVar[bool] = False

    def measure(self, row: WordsOfPrompt) -> list[float]:
        """Return less for a word the more rows have it."""
        return [-float(row.frequency.get(word.lower(), 0)) for word in row.words]


ATTRIBUTIONS: dict[str, type[Attribution]] = {
    kind.name: kind
    for kind in (
        Gradient,
        GradientTimesInput,
        IntegratedGradients,
        Occlusion,
        RandomWords,
        FirstWords,
        RareWords,
    )
}
"""Ways to weigh words, by name."""
