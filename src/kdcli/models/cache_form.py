"""How much a model remembers of each token, read from its config alone."""

from dataclasses import dataclass
from typing import Any

from kdcli.errors import InputError
from kdcli.models.left_out import left_out_of
from kdcli.text import one_line

_BOUNDED = ("sliding_attention", "chunked_attention")


@dataclass(frozen=True)
class CacheForm:
    """The shape of a key-value cache.

    Args:
        numbers: numbers that one layer keeps per token: keys and values of all its key-value heads.
        windows: for each layer with such a cache, the tokens it looks back at most; None for all of them.
        heads: query heads.
        head: numbers per head.
        fixed: layers that keep a state of fixed size instead; not counted.
    """

    numbers: int
    windows: tuple[int | None, ...]
    heads: int
    head: int
    fixed: int = 0

    def remembered(self, context: int) -> int:
        """Return the tokens that all layers together keep of a context.

        >>> CacheForm(2, (None, 4), 1, 1).remembered(10)
        14
        """
        return sum(context if window is None else min(window, context) for window in self.windows)

    def pairs(self, context: int) -> int:
        """Return how often, over all layers, a token of a context looks at a token: itself and those before it.

        >>> CacheForm(2, (None, 2), 1, 1).pairs(4)
        17
        """
        reach = [context if window is None else min(window, context) for window in self.windows]
        return sum(window * context - window * (window - 1) // 2 for window in reach)

    def elements(self, context: int) -> int:
        r"""Return the numbers kept of one sequence: :math:`\sum_{layers} \min(N, window) \cdot 2 h_{kv} d_{head}`.

        Args:
            context: tokens N of prompt and answer.

        >>> CacheForm(numbers=2 * 8 * 128, windows=(None,) * 32, heads=32, head=128).elements(4096)
        268435456
        """
        return self.numbers * self.remembered(context)


def cache_form(config: Any, where: str) -> CacheForm:
    """Read the form of a model's key-value cache from its config.

    Grouped-query and multi-query attention keep fewer heads, sliding windows fewer tokens; latent
    attention (DeepSeek) keeps one compressed vector and the rotary part of the key.

    Args:
        config: of the language model.
        where: the model, for messages.

    Raises:
        InputError: EST-01, the config names no layers or no heads.
    """
    layers, heads = _count(config, "num_hidden_layers", where), _count(config, "num_attention_heads", where)
    head = getattr(config, "head_dim", None) or _count(config, "hidden_size", where) // heads
    without = set(left_out_of(config).attention)
    kinds = [kind for layer, kind in enumerate(_kinds(config, layers)) if layer not in without]
    layers -= len(without)
    window = {
        "sliding_attention": getattr(config, "sliding_window", None),
        "chunked_attention": getattr(config, "attention_chunk_size", None),
    }
    kept = [kind for kind in kinds if kind == "full_attention" or kind in _BOUNDED]
    latent = getattr(config, "kv_lora_rank", None)
    numbers = latent + config.qk_rope_head_dim if latent else 2 * _key_heads(config, heads) * head
    return CacheForm(numbers, tuple(window.get(kind) for kind in kept), heads, head, layers - len(kept))


def _kinds(config: Any, layers: int) -> list[str]:
    named = getattr(config, "layer_types", None)
    if named:
        return list(named)
    blocks = getattr(config, "layers_block_type", None)
    if blocks:
        return ["full_attention" if kind == "attention" else kind for kind in blocks]
    slides = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    return ["sliding_attention" if slides else "full_attention"] * layers


def _key_heads(config: Any, heads: int) -> int:
    """Return the heads that keys and values have; families name them in three ways."""
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        return 1
    return getattr(config, "num_key_value_heads", None) or getattr(config, "num_kv_heads", None) or heads


def _count(config: Any, name: str, where: str) -> int:
    value = getattr(config, name, None)
    if not isinstance(value, int) or value < 1:
        what = f"the config has no {name}: not a model with attention heads"
        raise InputError("EST-01", what, where=one_line(where), fix="give the config of a transformer")
    return value
