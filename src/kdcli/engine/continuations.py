"""How likely a model finds several continuations of one prompt; the prompt is read once."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache

from kdcli.engine.devices import Device
from kdcli.losses.logits import log_softmax
from kdcli.models.internals import position_bounds, prompt_cache, read_into
from kdcli.models.load import LanguageModel
from kdcli.models.split import trunk_of


class Reader:
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
        return read_into(self.trunk, self.model.reading, ids, seen_or_new, cache)

    def _sum(self, hidden: Tensor, tokens: Sequence[int]) -> float:
        labels = torch.tensor(list(tokens), device=hidden.device)
        return float(self._logp(hidden).gather(1, labels[:, None]).double().sum())

    def _logp(self, hidden: Tensor) -> Tensor:
        return log_softmax(self.model.logits(hidden).float())
