"""Answers to prompts: batched, with a key-value cache, and the same whatever the batches are.

Every draw is a pure function of (seed, example, step), so that an answer depends neither on the
other prompts of its batch nor on any generator's state.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcli.config import GenerationConfig
from kdcli.errors import InputError, NumericsError
from kdcli.models.cache import roomy_cache, rows_can_leave
from kdcli.models.load import LanguageModel, positions_of
from kdcli.models.split import trunk_of


@dataclass(frozen=True)
class Answer:
    """What a model said to one prompt.

    Args:
        ids: the answer's tokens, without the end token.
        ended: whether the model ended it; False where it was cut at a length.
    """

    ids: tuple[int, ...]
    ended: bool


def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    *,
    seed: int,
    examples: Sequence[int] | None = None,
    rows: int | None = None,
    report: Callable[[int], None] = lambda tokens: None,
) -> list[Answer]:
    """Answer every prompt, greedily at temperature 0, else by sampling.

    Args:
        model: a loaded language model.
        prompts: token ids of each prompt, at least one each.
        config: length, temperature, nucleus mass and batch size; its ``seeds`` are not read here.
        seed: sampling seed.
        examples: the number of each prompt in the draws, default its position; lets a subset or
            another order give the same answers.
        rows: number of real ids, where the head has padding rows; no other id is generated.
        report: called after each step with the number of tokens just generated.

    Returns:
        one answer per prompt, in the prompts' order.

    Raises:
        InputError: an empty prompt, one that fills the model's context, or a recurrent model.
        NumericsError: the model's logits are not finite.
    """
    numbers = range(len(prompts)) if examples is None else examples
    limit = positions_of(model.model)
    _check(prompts, limit)
    _check_cache(model)
    answers: dict[int, Answer] = {}
    with torch.no_grad(), _evaluating(model.model):
        for places in _batches([len(prompt) for prompt in prompts], config):
            draws = uniforms(seed, [numbers[place] for place in places], config.max_new_tokens)
            batch = _Batch(model, [prompts[place] for place in places], config, draws, limit, rows or model.vocab)
            answers |= zip(places, batch.run(report), strict=True)
    return [answers[place] for place in range(len(prompts))]


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
    streams = [np.random.Philox(key=np.array([seed, example], dtype=np.uint64)) for example in examples]
    bits = np.array([stream.random_raw(steps) for stream in streams], dtype=np.uint64)
    return np.asarray(bits >> np.uint64(11), dtype=np.float64) * 2.0**-53


def sample(logits: Tensor, uniform: Tensor, *, temperature: float, top_p: float = 1.0) -> Tensor:
    """Pick tokens by inverting the cumulative distribution in vocabulary order.

    Args:
        logits: shape ``[b, v]``.
        uniform: one draw per row in [0, 1), float64, shape ``[b]``.
        temperature: divides the logits; above 0.
        top_p: keep the smallest set of most likely tokens that has at least this mass.

    Returns:
        token ids, shape ``[b]``.

    >>> sample(torch.tensor([[0.0, 0.0]]), torch.tensor([0.6], dtype=torch.float64), temperature=1.0).tolist()
    [1]
    """
    wide = logits.float()
    mass = torch.exp((wide - wide.amax(-1, keepdim=True)) / temperature)
    if top_p < 1.0:
        mass = _nucleus(mass, top_p)
    cumulative = mass.cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    target = torch.minimum(uniform[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1)


def _nucleus(mass: Tensor, top_p: float) -> Tensor:
    """Set to 0 what lies outside the smallest most likely set of mass ``top_p``; ties stay in."""
    ranked = mass.sort(-1, descending=True).values
    cumulative = ranked.cumsum(-1, dtype=torch.float64)
    before = cumulative - ranked
    kept = (before < top_p * cumulative[:, -1:]).sum(-1, keepdim=True).clamp(min=1)
    return mass.where(mass >= ranked.gather(-1, kept - 1), 0.0)


@dataclass
class _Batch:
    """Rows that are answered together; a row that has ended leaves."""

    speaker: LanguageModel
    prompts: list[Sequence[int]]
    config: GenerationConfig
    draws: NDArray[np.float64]
    limit: int | None
    ids: int

    def run(self, report: Callable[[int], None]) -> list[Answer]:
        """Answer the rows, in their order."""
        said: list[list[int]] = [[] for _ in self.prompts]
        ended = [False] * len(self.prompts)
        state = _State(self.speaker, self.prompts, self.config.max_new_tokens)
        alive = list(range(len(self.prompts)))
        for step in range(self.config.max_new_tokens):
            picked = self._pick(state.logits(self.ids), alive, step)
            for row, token in zip(alive, picked.tolist(), strict=True):
                ended[row] = token in self.speaker.end_ids
                if not ended[row]:
                    said[row].append(token)
            report(len(alive))
            staying = [place for place, row in enumerate(alive) if not ended[row] and self._has_room(row, step + 1)]
            if not staying or step + 1 == self.config.max_new_tokens:
                break
            state.go_on(picked, staying)
            alive = [alive[place] for place in staying]
        return [Answer(tuple(ids), end) for ids, end in zip(said, ended, strict=True)]

    def _pick(self, logits: Tensor, alive: list[int], step: int) -> Tensor:
        highest, likeliest = logits.max(-1)
        if not torch.isfinite(highest).all():
            what = "the model's logits are not finite while generating"
            raise NumericsError("GEN-03", what, where=self.speaker.path, fix="look at its training curve")
        if self.config.temperature == 0.0:
            return likeliest
        draws = torch.from_numpy(self.draws[alive, step]).to(logits.device)
        return sample(logits, draws, temperature=self.config.temperature, top_p=self.config.top_p)

    def _has_room(self, row: int, new: int) -> bool:
        return self.limit is None or len(self.prompts[row]) + new < self.limit


class _State:
    """The cache, what is visible in it, and the hidden state of each row's last token."""

    def __init__(self, speaker: LanguageModel, prompts: list[Sequence[int]], steps: int) -> None:
        self.speaker = speaker
        self.trunk = trunk_of(speaker.model)
        self.takes_positions = "position_ids" in inspect.signature(self.trunk.forward).parameters
        self.width = max(len(prompt) for prompt in prompts)
        self.cache = roomy_cache(speaker.model.config, self.width + steps)
        device = speaker.model.device
        padded = [[speaker.pad_id] * (self.width - len(prompt)) + list(prompt) for prompt in prompts]
        self.lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        columns = torch.arange(self.width + steps, device=device)
        self.mask = (columns >= self.width - self.lengths[:, None]).long()
        positions = (columns[: self.width] - (self.width - self.lengths[:, None])).clamp(min=0)
        self._forward(torch.tensor(padded, device=device), positions)

    def logits(self, ids: int) -> Tensor:
        """Logits of the next token of each row over the first so many ids, ``[b, ids]``."""
        return self.speaker.head.logits(self.hidden, ids)

    def go_on(self, picked: Tensor, staying: list[int]) -> None:
        """Append the picked token to the rows that stay; the others leave the batch."""
        if len(staying) < len(picked):
            places = torch.tensor(staying, device=picked.device)
            self.cache.batch_select_indices(places)
            picked, self.lengths, self.mask = picked[places], self.lengths[places], self.mask[places]
        self.width += 1
        self._forward(picked[:, None], self.lengths[:, None])
        self.lengths = self.lengths + 1

    def _forward(self, ids: Tensor, positions: Tensor) -> None:
        extra = {"position_ids": positions} if self.takes_positions else {}
        output = self.trunk(
            input_ids=ids,
            attention_mask=self.mask[:, : self.width],
            past_key_values=self.cache,
            use_cache=True,
            **extra,
        )
        self.hidden = output.last_hidden_state[:, -1]


def _batches(lengths: Sequence[int], config: GenerationConfig) -> Iterator[list[int]]:
    """Cut rows, longest first, so that rows times their longest possible width fit ``batch_tokens``."""
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    while order:
        width = lengths[order[0]] + config.max_new_tokens
        size = max(1, config.batch_tokens // width)
        yield order[:size]
        order = order[size:]


def _check_cache(model: LanguageModel) -> None:
    """Refuse models whose memory is not a cache of keys and values that rows can leave."""
    takes_cache = "past_key_values" in inspect.signature(trunk_of(model.model).forward).parameters
    if not takes_cache or not rows_can_leave(roomy_cache(model.model.config, 0).layers):
        what = f"{type(model.model).__name__} has recurrent layers; answers need a cache of keys and values"
        raise InputError("GEN-04", what, where=model.path, fix="choose metrics of tokens, such as perplexity")


def _check(prompts: Sequence[Sequence[int]], limit: int | None) -> None:
    for index, prompt in enumerate(prompts):
        where = f"prompt {index}"
        if len(prompt) == 0:
            raise InputError("GEN-01", "the prompt has no tokens", where=where, fix="start it with the model's BOS")
        if limit is not None and len(prompt) >= limit:
            what = f"{len(prompt)} tokens leave no room in the model's context of {limit}"
            raise InputError("GEN-02", what, where=where, fix=f"set data.max_prompt_length below {limit}")


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Switch dropout off, and put it back."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
