"""Log-probabilities of several continuations of one prompt, which is prefilled once."""

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache

from kdcli.data.tokenize import Example
from kdcli.losses.base import log_softmax
from kdcli.models.devices import Device
from kdcli.models.head import trunk_of
from kdcli.models.internals import eval_mode, forward_with_cache, position_bounds, prompt_cache
from kdcli.models.load import LanguageModel


class LogProbScorer:
    """Reads continuations of prompts.

    Args:
        model: a loaded language model.
        device: where to compute.
        tokens: prompt and continuation tokens that are remembered at once.
    """

    def __init__(self, model: LanguageModel, device: Device, tokens: int = 8192) -> None:
        self.model, self.device, self.tokens = model, device, tokens
        self.trunk = trunk_of(model.model)
        self._remembers = model.reading.cache is not None and not position_bounds(model.model.config)

    @torch.no_grad()
    def logp(self, prompt: Sequence[int], continuations: Sequence[Sequence[int]]) -> list[float]:
        """Return the log-probability of each continuation after the prompt, summed over its tokens.

        Args:
            prompt: token ids, at least one.
            continuations: token ids of each, at least one each.
        """
        with torch.autocast(self.device.device.type, self.device.autocast, enabled=self.device.autocast is not None):
            if not self._remembers:
                return [self._apart(prompt, tokens) for tokens in continuations]
            cache = prompt_cache(self.model.model.config)
            hidden = self._run([prompt], cache)[:, -1]
            first = self._logp(hidden)[0]
            found = [float(first[tokens[0]]) for tokens in continuations]
            longer = [place for place, tokens in enumerate(continuations) if len(tokens) > 1]
            longest = max((len(continuations[place]) for place in longer), default=0)
            step = max(1, self.tokens // (len(prompt) + longest))
            for start in range(0, len(longer), step):
                places = longer[start : start + step]
                rest = self._rest([continuations[place] for place in places], cache, len(prompt))
                for place, logp in zip(places, rest, strict=True):
                    found[place] += logp
        return found

    def _rest(self, continuations: Sequence[Sequence[int]], cache: DynamicCache, seen: int) -> list[float]:
        """Return the log-probabilities of all tokens but the first, the prompt remembered."""
        several = copy.deepcopy(cache)
        several.batch_repeat_interleave(len(continuations))
        hidden = self._run([tokens[:-1] for tokens in continuations], several, seen)
        return [self._sum(hidden[row, : len(tokens) - 1], tokens[1:]) for row, tokens in enumerate(continuations)]

    def _apart(self, prompt: Sequence[int], tokens: Sequence[int]) -> float:
        ids = torch.tensor([[*prompt, *tokens[:-1]]], device=self.device.device)
        hidden = self.model.hidden(ids, torch.ones_like(ids))[0]
        return self._sum(hidden[len(prompt) - 1 :], tokens)

    def _run(self, rows: Sequence[Sequence[int]], cache: DynamicCache, seen: int = 0) -> Tensor:
        """Read rows padded on the right after what the cache remembers; returns hidden states ``[b s d]``."""
        width = max(len(row) for row in rows)
        padded = [[*row, *[self.model.pad_id] * (width - len(row))] for row in rows]
        mask = [[1] * (seen + len(row)) + [0] * (width - len(row)) for row in rows]
        ids, seen_or_new = (torch.tensor(one, device=self.device.device) for one in (padded, mask))
        return forward_with_cache(self.trunk, self.model.reading, ids, seen_or_new, cache)

    def _sum(self, hidden: Tensor, tokens: Sequence[int]) -> float:
        labels = torch.tensor(list(tokens), device=hidden.device)
        return float(self._logp(hidden).gather(1, labels[:, None]).double().sum())

    def _logp(self, hidden: Tensor) -> Tensor:
        return log_softmax(self.model.logits(hidden).float())


# Log-probabilities that a model gives to the tokens of a sequence, read by itself.


_AT_ONCE = 128
"""Tokens whose logits exist at once."""


@torch.no_grad()
def label_log_probs(
    model: LanguageModel, ids: Sequence[int], prompt_length: int, rows: int, autocast: torch.dtype | None = None
) -> Float[Tensor, " n"]:
    """Return log q(y_t) of every token behind a prompt, on the CPU, in fp32 or wider.

    The sequence is read alone and without dropout, so that the numbers depend on nothing else.

    Args:
        model: whose log-probabilities; its training mode is put back.
        ids: prompt and response.
        prompt_length: how many of them are prompt, at least 1.
        rows: real ids; the others have no probability.
        autocast: dtype of the forward pass; None for that of the weights.
    """
    device = model.model.device
    whole = torch.tensor([list(ids)], device=device)
    with eval_mode(model.model), torch.autocast(device.type, autocast, enabled=autocast is not None):
        hidden = model.hidden(whole[:, :-1], torch.ones_like(whole[:, :-1]))[0, prompt_length - 1 :]
        labels = whole[0, prompt_length:, None]
        pieces = [
            _of_labels(model.head.logits(hidden[at : at + _AT_ONCE], rows), labels[at : at + _AT_ONCE])
            for at in range(0, len(hidden), _AT_ONCE)
        ]
    return torch.cat(pieces).cpu()


def _of_labels(logits: Tensor, labels: Tensor) -> Tensor:
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.log_softmax(wide, -1).gather(1, labels)[:, 0]


# How likely a model finds the tokens of one response.


_ROWS = 256


@torch.no_grad()
def response_log_probs(model: LanguageModel, example: Example, ids: int) -> Tensor:
    """Return the log-probability of each response token at temperature 1, ``[n]`` in fp32, on the CPU.

    The sequence is read by itself, so that no number depends on others.

    Args:
        model: who judges; its mode is put back.
        example: prompt and response.
        ids: real ids; padding rows of the head have no probability.
    """
    training = model.model.training
    model.model.eval()
    try:
        tokens = torch.tensor([example.ids[:-1]], device=model.model.device)
        hidden = model.hidden(tokens, torch.ones_like(tokens))[0, example.prompt_length - 1 :]
        labels = torch.tensor(example.ids[example.prompt_length :], device=hidden.device)
        parts = [
            log_softmax(model.head.logits(hidden[at : at + _ROWS], ids).float()).gather(
                1, labels[at : at + _ROWS, None]
            )
            for at in range(0, len(labels), _ROWS)
        ]
    finally:
        model.model.train(training)
    return torch.cat(parts).squeeze(1).cpu()
