"""Rewrites a family's settings for another number of layers, another width, other heads."""

from collections.abc import Mapping
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

_FFN = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads")
_POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")
_FROM_TEACHER = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings")
_NOT_COPIED = (
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "quantization_config",
    "attention_types",
)
_GLU_RATIO = 8 / 3


def resized_settings(teacher: PreTrainedConfig, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a student.

    Args:
        teacher: the teacher's text config.
        options: layers, width, heads; kv_heads (default: heads), ffn (default: in the teacher's
            ratio to its width, or another family's usual one), family (default: the teacher's).

    Returns:
        keyword arguments of the student's config class, with ``model_type``.
    """
    family = options.get("family", teacher.model_type)
    same = family == teacher.model_type
    blank = teacher if same else CONFIG_MAPPING[family]()
    settings = {key: value for key, value in blank.to_dict().items() if key not in _NOT_COPIED}
    if not same:
        _adopt(settings, blank, teacher)
    _set(settings, blank, "num_hidden_layers", options["layers"])
    _set(settings, blank, "hidden_size", options["width"])
    _set(settings, blank, "num_attention_heads", options["heads"])
    _resize_inside(settings, options, _ratio(blank))
    _resize_lists(settings, options["layers"])
    settings["model_type"] = family
    return settings


def _adopt(settings: dict[str, Any], blank: PreTrainedConfig, teacher: PreTrainedConfig) -> None:
    """Give another family's settings the teacher's vocabulary, positions and tying."""
    for key in _FROM_TEACHER:
        settings[key] = getattr(teacher, key, None)
    positions = next((value for name in _POSITIONS if isinstance(value := getattr(teacher, name, None), int)), None)
    if positions is not None:
        _set(settings, blank, "max_position_embeddings", positions)


def _ratio(config: PreTrainedConfig) -> float | None:
    """Return feed-forward width over width; None where the family derives one from the other."""
    ffn = next((value for name in _FFN if isinstance(value := getattr(config, name, None), int)), None)
    return ffn / getattr(config, "hidden_size", ffn) if ffn else None


def _resize_inside(settings: dict[str, Any], options: Mapping[str, Any], ratio: float | None) -> None:
    width, heads = options["width"], options["heads"]
    size = width // heads
    ffn = options.get("ffn") or (4 * round(width * ratio / 4) or 4 if ratio else None)
    for name in _FFN:
        if name in settings:
            settings[name] = ffn
    for name in _KV_HEADS:
        if settings.get(name) is not None or (name in settings and "kv_heads" in options):
            settings[name] = options.get("kv_heads", heads)
    for name in ("head_dim", "query_pre_attn_scalar"):
        if settings.get(name) is not None:
            settings[name] = size
    if isinstance(settings.get("rotary_dim"), int):
        settings["rotary_dim"] = min(settings["rotary_dim"], size)
    if "word_embed_proj_dim" in settings:
        settings["word_embed_proj_dim"] = width
    rope = settings.get("rope_parameters")
    if isinstance(rope, dict) and any(isinstance(value, list) for value in rope.values()):
        # Tables with one entry per dimension of a head do not fit another head.
        settings["rope_parameters"] = {"rope_type": "default", "rope_theta": rope.get("rope_theta", 10_000.0)}


def _resize_lists(settings: dict[str, Any], layers: int) -> None:
    """Cut or repeat settings that hold one value for each layer."""
    for key, value in settings.items():
        if key.endswith(("layer_types", "layers_types", "no_rope_layers")) and isinstance(value, list) and value:
            settings[key] = [value[index % len(value)] for index in range(layers)]
    if "max_window_layers" in settings:
        settings["max_window_layers"] = min(settings["max_window_layers"], layers)


def _set(settings: dict[str, Any], config: PreTrainedConfig, name: str, value: int) -> None:
    """Set a size under the family's own name for it."""
    settings[config.attribute_map.get(name, name)] = value
