"""Parameters of a model in closed form, from its config.json alone, for families whose layers are known.

A config that says anything beyond the settings listed here is not known, so that what cannot be counted for sure is
counted by building the model instead. With width d, layers L, heads h of size s, heads g of keys and values,
feed-forward units f, vocabulary V:

* Llama and its kin: :math:`V d + L (2 (h + g) s d + 3 d f + 2 d) + d`, biases and norms of heads besides, and
  :math:`V d` for a head of its own
* GPT-2, with P positions: :math:`(V + P) d + L (4 d^2 + 2 d f + f + 9 d) + 2 d`
* GPT-NeoX: :math:`2 V d + L (4 d^2 + 2 d f + f + 5 d) + 2 d`, and 4 d biases of attention in each layer
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypeAlias

_LARGEST = 10**7
_IDLE = frozenset({
    "_name_or_path", "activation_function", "architectures", "attention_dropout", "attention_probs_dropout_prob",
    "attn_pdrop", "bos_token_id", "classifier_dropout", "dtype", "embd_pdrop", "eos_token_id", "hidden_act",
    "hidden_dropout", "initializer_range", "is_decoder", "is_llama_config", "layer_norm_eps",
    "layer_norm_epsilon", "max_window_layers", "model_type", "n_ctx", "pad_token_id", "pretraining_tp",
    "reorder_and_upcast_attn", "resid_pdrop", "rms_norm_eps", "rope_interleaved", "rope_parameters",
    "rope_scaling", "rope_theta", "rotary_emb_base", "rotary_pct", "scale_attn_by_inverse_layer_idx",
    "scale_attn_weights", "summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type",
    "summary_use_proj", "task_specific_params", "torch_dtype", "transformers_version", "use_cache", "use_mrope",
    "use_parallel_residual",
})  # fmt: skip
"""Settings on which neither parameters nor the KV cache depend."""


@dataclass(frozen=True)
class Counts:
    """Parameters of a model.

    Args:
        parameters: all of them, shared ones once.
        head: those of the head's matrix, whether or not it is shared with the embedding.
        tied: whether head and embedding are one matrix.
    """

    parameters: int
    head: int
    tied: bool

    @property
    def trunk(self) -> int:
        """Parameters that every token passes: all but embedding and head."""
        return max(self.parameters - (self.head if self.tied else 2 * self.head), 0)


Known: TypeAlias = tuple[SimpleNamespace, Counts]
"""The settings that an estimate reads, under the names of transformers' configs, and the parameters."""


def known_sizes(settings: Mapping[str, Any]) -> Known | None:
    """Return what a config.json asks for; None where the model must be built to know.

    Args:
        settings: its contents.

    >>> llama = {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    ...     "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000, "tie_word_embeddings": False,
    ...     "max_position_embeddings": 4096}
    >>> known_sizes(llama)[1].parameters
    6738415616
    >>> known_sizes({**llama, "sliding_window": 128}) is None
    True
    """
    family = settings.get("model_type")
    count = _FAMILIES.get(family) if isinstance(family, str) else None
    asked = _Asked(settings)
    found = count(asked) if count is not None else None
    return found if not asked.lacking and not set(settings) - asked.read - _IDLE else None


class _Asked:
    """Settings that are read one by one; what is missing, of another type or out of bounds is noted.

    Args:
        settings: the contents of config.json.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings
        self.read: set[str] = set()
        self.lacking = False

    def size(self, name: str, default: int | None = None) -> int:
        """Return a size; a default stands for one that is absent or null."""
        self.read.add(name)
        found = self.settings.get(name)
        value = default if found is None else found
        self.lacking |= type(value) is not int or not 1 <= value <= _LARGEST
        return value if type(value) is int else 1

    def flag(self, name: str, default: bool | None = None) -> bool:
        """Return a switch."""
        self.read.add(name)
        found = self.settings.get(name, default)
        self.lacking |= type(found) is not bool
        return found is True

    def need(self, holds: bool) -> None:
        """Note that the model is not known unless something holds."""
        self.lacking |= not holds


def _llama(asked: _Asked) -> Known:
    """Count Llama and its kin; which biases and norms there are is the family's."""
    family = asked.settings["model_type"]
    width, layers, heads = (asked.size(name) for name in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    groups, units, vocab = (asked.size(name) for name in ("num_key_value_heads", "intermediate_size", "vocab_size"))
    asked.need(heads % groups == 0)
    size = asked.size("head_dim", None if family == "qwen3" else width // heads)
    asked.need(width % heads == 0 or (family == "qwen3" and "head_dim" in asked.settings))
    window = _window(asked, family)
    inner = (2 * heads + 2 * groups) * size
    each = inner * width + 3 * width * units + 2 * width
    if family == "qwen2" or (family != "mistral" and asked.flag("attention_bias", False)):
        each += (heads + 2 * groups) * size + (0 if family == "qwen2" else width)
    if family == "llama" and asked.flag("mlp_bias", False):
        each += 2 * units + width
    if family == "qwen3":
        each += 2 * size
    tied = asked.flag("tie_word_embeddings")
    total = vocab * width * (1 if tied else 2) + layers * each + width
    config = SimpleNamespace(
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=groups, head_dim=size,
        hidden_size=width, vocab_size=vocab, sliding_window=window,
        max_position_embeddings=asked.size("max_position_embeddings"),
    )  # fmt: skip
    return config, Counts(total, vocab * width, tied)


def _window(asked: _Asked, family: str) -> int | None:
    """Return how far back the layers look; None for all the way. Layers that differ are not known."""
    if family == "llama":
        return None
    asked.read |= {"sliding_window", "use_sliding_window", "layer_types"}
    kinds = asked.settings.get("layer_types")
    asked.need(kinds is None or (isinstance(kinds, list) and set(kinds) == {"full_attention"} and family != "mistral"))
    window = asked.settings.get("sliding_window")
    if family == "mistral":
        asked.need("sliding_window" in asked.settings and "use_sliding_window" not in asked.settings)
        asked.need(window is None or (type(window) is int and window > 0))
        return window
    asked.need(asked.settings.get("use_sliding_window", False) is False)
    asked.need(kinds is None or len(kinds) == asked.settings.get("num_hidden_layers"))
    return None


def _gpt2(asked: _Asked) -> Known:
    width, layers, heads = (asked.size(name) for name in ("n_embd", "n_layer", "n_head"))
    vocab, positions = asked.size("vocab_size"), asked.size("n_positions")
    units = asked.size("n_inner", 4 * width)
    asked.need(width % heads == 0)
    asked.need(asked.flag("tie_word_embeddings", True))
    asked.need(not asked.flag("add_cross_attention", False))
    each = 4 * width**2 + 2 * width * units + units + 9 * width
    config = SimpleNamespace(
        num_hidden_layers=layers, num_attention_heads=heads, hidden_size=width, vocab_size=vocab,
        max_position_embeddings=positions,
    )  # fmt: skip
    return config, Counts((vocab + positions) * width + layers * each + 2 * width, vocab * width, tied=True)


def _neox(asked: _Asked) -> Known:
    width, layers, heads = (asked.size(name) for name in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    units, vocab = asked.size("intermediate_size"), asked.size("vocab_size")
    asked.need(width % heads == 0)
    tied = asked.flag("tie_word_embeddings")
    each = 4 * width**2 + 2 * width * units + units + 5 * width + 4 * width * asked.flag("attention_bias", True)
    config = SimpleNamespace(
        num_hidden_layers=layers, num_attention_heads=heads, hidden_size=width, vocab_size=vocab,
        max_position_embeddings=asked.size("max_position_embeddings"),
    )  # fmt: skip
    return config, Counts(vocab * width * (1 if tied else 2) + layers * each + 2 * width, vocab * width, tied)


_FAMILIES: dict[str, Callable[[_Asked], Known]] = {
    "gpt2": _gpt2,
    "gpt_neox": _neox,
    "llama": _llama,
    "mistral": _llama,
    "qwen2": _llama,
    "qwen3": _llama,
}
