"""The forward passes of generation: prefill, one token for every row, and one row alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from kdcli.data.images import ImageInputs
from kdcli.errors import InputError, NumericsError
from kdcli.generation.kv_cache import KVState, RowCache, cache_of, kv_state_of
from kdcli.models.head import image_arguments, trunk_of, trunk_output
from kdcli.models.internals import forward_with_cache, position_bounds, position_offset, prompt_cache
from kdcli.models.kernels import product, worthwhile
from kdcli.models.load import LanguageModel, positions_of

# Batch invariance: how far a row's logits may depend on the other rows of its batch.


_FINE = (torch.float32, torch.float64)


def is_batch_invariant(model: PreTrainedModel) -> bool:
    """Whether a row's logits in a batch are those of the row alone, but for sums of fp32 or finer in another order.

    They are not in bf16 or fp16, with four-bit weights, with matrix products below fp32, in a mixture of experts,
    where a rounding error may choose another expert, or where the longest row in the batch sets all rows' positions.
    """
    fine = all(parameter.dtype in _FINE for parameter in model.parameters())
    highest = torch.get_float32_matmul_precision() == "highest"
    return fine and highest and not has_experts(model) and not _stretches_positions(model)


def has_experts(model: PreTrainedModel) -> bool:
    """Whether tokens are sent to some of several experts; which of them share a product then follows from all."""
    return any(name.rpartition(".")[2] == "experts" for name, _ in model.named_modules())


def _stretches_positions(model: PreTrainedModel) -> bool:
    """Whether rotary positions are of two kinds, and the longest row of a forward pass says which all rows get."""
    return bool(position_bounds(model.config))


_ROUNDINGS = 64


@dataclass(frozen=True)
class Prefill:
    """A prompt that was read.

    Args:
        kept: keys and values of its tokens.
        logits: of the token after it, ``[1, ids]``.
        offset: by how much the next token's position differs from the number of tokens read, where images count
            otherwise.
    """

    kept: KVState
    logits: Tensor
    offset: int = 0


class Decoder:
    """A model that reads prompts into a KV cache and decodes from it.

    Args:
        model: a loaded language model.
        ids: real ids; no other is generated.

    Attributes:
        is_exact: whether a batch gives a row's own logits, to a few roundings of fp32.
        reads_blocks: whether a row's tokens can be read together without a later one moving a bit of an earlier one.
    """

    def __init__(self, model: LanguageModel, ids: int) -> None:
        self.model, self.ids = model, ids
        self.trunk = trunk_of(model.model)
        self.device = model.model.device
        self.limit = positions_of(model.model)
        self.is_exact = is_batch_invariant(model.model)
        self.reads_blocks = not has_experts(model.model)
        self.cache = RowCache(model.model.config)

    def check(self, prompts: Sequence[Sequence[int]]) -> None:
        """Refuse prompts without tokens or without room behind them, and models that rows cannot leave."""
        for index, prompt in enumerate(prompts):
            where = f"prompt {index}"
            if len(prompt) == 0:
                raise InputError("GEN-01", "the prompt has no tokens", where=where, fix="start it with the model's BOS")
            if self.limit is not None and len(prompt) >= self.limit:
                what = f"{len(prompt)} tokens leave no room in the model's context of {self.limit}"
                raise InputError("GEN-02", what, where=where, fix=f"set data.max_prompt_length below {self.limit}")
        if self.model.reading.cache is None:
            family, seen = type(self.model.model).__name__, self.model.reading.seen
            what = f"answers need a cache of keys and values, and {family} offers none: {seen}"
            fix = "choose metrics of tokens, such as perplexity"
            raise InputError("GEN-04", what, where=self.model.path, fix=fix)

    def prefill(self, prompt: Sequence[int], images: ImageInputs | None = None) -> Prefill:
        """Read a prompt, alone, with its images if it has some."""
        cache = prompt_cache(self.model.model.config)
        ids = torch.tensor([list(prompt)], device=self.device)
        positions = torch.arange(len(prompt), device=self.device)[None]
        extra = image_arguments(self.trunk, [images], len(prompt))
        hidden = self._read(ids, torch.ones_like(ids), cache, positions, extra)
        offset = position_offset(self.trunk) if extra else 0
        return Prefill(kv_state_of(cache), self._logits(hidden[:, -1]), offset)

    def decode_step(self, tokens: Sequence[int]) -> Tensor:
        """Let every row in the cache read one token; returns the next one's logits, ``[rows, ids]``."""
        cache = self.cache
        cache.make_column()
        window = cache.window
        lengths = torch.tensor(cache.lengths, device=self.device)[:, None]
        columns = torch.arange(window.end - window.begin + 1, device=self.device)
        ids = torch.tensor(tokens, device=self.device)[:, None]
        positions = lengths + torch.tensor(cache.offsets, device=self.device)[:, None]
        hidden = self._read(ids, (columns >= columns[-1] - lengths).long(), cache.cache, positions)
        cache.advance()
        return self._logits(hidden[:, -1])

    def forward_single(self, tokens: Sequence[int], images: ImageInputs | None = None) -> Tensor:
        """Return the logits after a sequence that is read anew, by itself, ``[1, ids]``."""
        ids = torch.tensor([list(tokens)], device=self.device)
        return self._logits(trunk_output(self.trunk, ids, torch.ones_like(ids), [images])[:, -1])

    def rescore(self, past: KVState, tokens: Sequence[int], offset: int = 0) -> Prefill:
        """Read some tokens of one row, by itself, after what it remembers.

        Args:
            past: keys and values of the tokens before.
            tokens: what to read.
            offset: by how much their positions differ from the numbers of tokens before them.

        Returns:
            keys and values of all its tokens, and the logits after each one read, ``[len(tokens), ids]``.
        """
        cache = cache_of(self.model.model.config, past)
        seen = cache.get_seq_length()
        positions = torch.arange(seen + offset, seen + offset + len(tokens), device=self.device)[None]
        ids = torch.tensor([list(tokens)], device=self.device)
        mask = torch.ones(1, seen + len(tokens), dtype=torch.int64, device=self.device)
        hidden = self._read(ids, mask, cache, positions)
        return Prefill(kv_state_of(cache), self._logits(hidden[0]))

    def tolerance(self, logits: Tensor) -> Tensor | None:
        """Return by how much each row's logits may differ from those of the row alone, ``[b]``.

        That is 64 roundings of the largest logit. None where nothing would be sure; then rows are read again, alone.
        """
        if not self.is_exact:
            return None
        least, most = logits.amin(-1), logits.amax(-1)
        largest = torch.maximum(least.where(least.isfinite(), 0.0).abs(), most.abs())
        return largest * (_ROUNDINGS * torch.finfo(logits.dtype).eps)

    def _read(
        self, ids: Tensor, mask: Tensor, cache: DynamicCache, positions: Tensor, extra: dict[str, Tensor] | None = None
    ) -> Tensor:
        return forward_with_cache(self.trunk, self.model.reading, ids, mask, cache, positions, extra)

    def _logits(self, hidden: Tensor) -> Tensor:
        logits = self._project(hidden)
        if not torch.isfinite(logits.amax(-1)).all():
            what = "the model's logits are not finite while generating"
            raise NumericsError("GEN-03", what, where=self.model.path, fix="look at its training curve")
        return logits

    def _project(self, hidden: Tensor) -> Tensor:
        """Return the head's logits, by whichever library is fastest."""
        head = self.model.head
        if not worthwhile(hidden, head.weight, hidden.numel() * self.ids):
            return head.logits(hidden, self.ids)
        bias = None if head.bias is None else head.bias[: self.ids]
        return head.apply_scale_and_cap_(product(hidden.contiguous(), head.weight[: self.ids], bias))
