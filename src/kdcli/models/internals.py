"""The one module that uses transformers' internals: how a decoder reads, its cache, its layers, its attention.

What lies below transformers' top level, and names of its own that begin with an underscore, are used here and nowhere
else. ``tests/models/test_internals.py`` names each of them, and what it must do.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.activations import FastGELUActivation, NewGELUActivation
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
)
from transformers.models.auto.tokenization_auto import tokenizer_class_from_name
from transformers.pytorch_utils import Conv1D

from kdcli.errors import raise_machine_fault
from kdcli.models.left_out import left_out_of
from kdcli.text import one_line

__all__ = [
    "MODEL_FOR_CAUSAL_LM_MAPPING",
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING",
    "PLAIN",
    "RUN_ERRORS",
    "CacheInterface",
    "Conv1D",
    "DynamicLayer",
    "FastGELUActivation",
    "NewGELUActivation",
    "NoLayer",
    "SequenceClassifierOutput",
    "attention_of",
    "cache_in",
    "cache_interface_of",
    "forward_with_cache",
    "layers_of",
    "position_bounds",
    "position_offset",
    "prompt_cache",
    "tokenizer_class_from_name",
]


# Switches a model's dropout off for a while.


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Switch dropout off, and put it back."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


PLAIN = (DynamicLayer, DynamicSlidingWindowLayer)
"""Layers of a cache that hold keys and values, and nothing else."""


class NoLayer(DynamicLayer):
    """Stands in a cache for a layer without attention; nothing is ever put into it."""


_BOUND = "original_max_position_embeddings"

RUN_ERRORS = (RuntimeError, ValueError, TypeError, AttributeError, LookupError)
"""What a family's forward pass raises on a call that it cannot take."""


@dataclass(frozen=True)
class CacheInterface:
    """How a decoder reads tokens behind others that a cache of keys and values holds.

    Args:
        cache: the argument that takes the cache; None where the decoder keeps no keys and values.
        positions: whether it takes positions, too.
        seen: where it keeps none, what was seen instead.
    """

    cache: str | None = None
    positions: bool = False
    seen: str = "it was not tried"


def prompt_cache(config: PreTrainedConfig) -> DynamicCache:
    """Return a cache for one prompt; no layer forgets what lies before its window."""
    cache = DynamicCache(config=config)
    without = set(left_out_of(config).attention)
    cache.layers = [
        NoLayer() if number in without else DynamicLayer() if type(layer) in PLAIN else layer
        for number, layer in enumerate(cache.layers)
    ]
    return cache


def cache_in(output: Mapping[str, Any]) -> tuple[str, Cache] | None:
    """Return the cache that a forward pass hands back, with its name, which is that of the argument that takes it."""
    return next(((name, value) for name, value in output.items() if isinstance(value, Cache)), None)


def cache_interface_of(trunk: nn.Module, config: PreTrainedConfig) -> CacheInterface:
    """Find out how a decoder is handed a cache: it reads a token with its own, and one with a given one.

    Args:
        trunk: the model below its head.
        config: the model's config.
    """
    token = torch.zeros(1, 1, dtype=torch.int64, device=next(trunk.parameters()).device)
    with torch.no_grad(), eval_mode(trunk):
        try:
            own = cache_in(trunk(input_ids=token, use_cache=True))
        except RUN_ERRORS as error:
            raise_machine_fault(error, type(trunk).__name__)
            return CacheInterface(seen=f"reading a token with a cache fails: {one_line(str(error), 120)}")
        if own is None:
            return CacheInterface(seen="it hands back no cache when it is asked for one")
        return _reading_with(trunk, own[0], token, config)


def _reading_with(trunk: nn.Module, name: str, token: Tensor, config: PreTrainedConfig) -> CacheInterface:
    why = ""
    for reading in (CacheInterface(name, positions=True), CacheInterface(name)):
        cache = prompt_cache(config)
        try:
            forward_with_cache(trunk, reading, token, torch.ones_like(token), cache, torch.zeros_like(token))
        except RUN_ERRORS as error:
            raise_machine_fault(error, type(trunk).__name__)
            why = why or f"reading a token into a given cache ({name}) fails: {one_line(str(error), 120)}"
            continue
        states = Counter(type(layer).__name__ for layer in cache.layers if _holds_a_state(layer))
        if states:
            kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(states.items()))
            return CacheInterface(
                seen=f"{states.total()} of the {len(cache.layers)} layers hold something else ({kinds})"
            )
        if cache.get_seq_length() == 1:
            return reading
        why = why or f"a given cache ({name}) holds {cache.get_seq_length()} tokens after one was read"
    return CacheInterface(seen=why)


def _holds_a_state(layer: object) -> bool:
    """Whether a layer of a cache that was used holds something other than keys and values."""
    parts = [] if type(layer) in PLAIN else [*vars(layer).values()]
    inside = [one for part in parts for one in (part.values() if isinstance(part, dict) else [part])]
    return any(isinstance(one, Tensor) for one in inside)


def forward_with_cache(
    trunk: nn.Module,
    reading: CacheInterface,
    ids: Tensor,
    mask: Tensor,
    cache: Cache,
    positions: Tensor | None = None,
    extra: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Read tokens behind those that a cache holds, and put them into it; return the last hidden states, ``[b s d]``.

    Args:
        trunk: the model below its head.
        reading: how it is handed the cache.
        ids: the tokens, ``[b s]``.
        mask: 1 for tokens, 0 for padding, those in the cache first, ``[b seen+s]``.
        cache: holds the tokens before.
        positions: of the tokens, ``[b s]``, for decoders that take them; None counts on from the cache.
        extra: what a model of images reads besides, by argument; such a model then finds the positions itself.
    """
    given = {} if positions is None or not reading.positions or extra else {"position_ids": positions}
    given |= extra or {}
    return trunk(
        input_ids=ids, attention_mask=mask, use_cache=True, **{str(reading.cache): cache}, **given
    ).last_hidden_state


def layers_of(model: PreTrainedModel, trunk: nn.Module) -> nn.ModuleList | None:
    """Return a decoder's layers in order: its first list of as many modules as the config counts; None without one."""
    text = model.config.get_text_config(decoder=True)
    # A model of images has layers in its image encoder, too: only what is built from the text's config is looked at.
    inside = (one for one in trunk.modules() if isinstance(one, PreTrainedModel) and one.config is text)
    lists = (module for module in next(inside, trunk).modules() if isinstance(module, nn.ModuleList))
    count = text.num_hidden_layers
    return next((one for one in lists if len(one) == count), None)


def position_offset(trunk: nn.Module) -> int:
    """Return by how much the position of the next token differs from the number of tokens read, after a prefill.

    It differs where images have positions in a plane of their own, as in M-RoPE (Wang et al. 2024, arXiv:2409.12191,
    section 2.1): there an image takes fewer positions than tokens, and the trunk keeps the difference.
    """
    found = getattr(trunk, "rope_deltas", None)
    return 0 if found is None else int(found.flatten()[0])


def position_bounds(config: PreTrainedConfig) -> tuple[int, ...]:
    """Return the lengths beyond which a forward pass gives all its rows other rotary positions, in order.

    LongRoPE has two sets of frequencies, and the longest row of a batch chooses one for all (Ding et al. 2024,
    arXiv:2402.13753, section 3.4). Dynamic scaling changes beyond ``max_position_embeddings`` alone, which no row is.
    """
    given: Any = getattr(config.get_text_config(decoder=True), "rope_parameters", None) or {}
    kinds = [kind for kind in (given, *given.values()) if isinstance(kind, dict)]
    return tuple(sorted({int(one[_BOUND]) for one in kinds if one.get("rope_type") == "longrope"}))


def attention_of(model: PreTrainedModel) -> str:
    """Return the name of the attention that a model computes: ``sdpa``, ``eager``, or another kernel's."""
    return model.config._attn_implementation or "eager"
