"""What config.json may say: sizes in bounds, a known family, nothing that loads code."""

import re
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

from kdcli.errors import InputError
from kdcli.models.internals import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL
from kdcli.text import one_line

_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_SIZES = frozenset({
    *_LAYERS, "vocab_size", "hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "head_dim",
    "intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "num_attention_heads", "n_head", "n_heads",
    "num_key_value_heads", "num_kv_heads", "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len",
})  # fmt: skip
_SIZE_LIMIT = 10**9
_COUNT = re.compile(r"(n|num)_\w*(heads?|experts|blocks|groups)$")
_COUNT_LIMIT = 100_000
# Keys that name code, kernels or other files, that steer how transformers loads, or that no LM needs.
_DANGEROUS = frozenset({
    "auto_map", "attn_implementation", "experts_implementation", "transformers_weights", "fusion_config",
    "distributed_config", "kernel_config", "use_kernels", "custom_generate", "custom_pipelines",
    "configuration_files", "name_or_path", "trust_remote_code", "code_revision", "tp_plan", "base_model_tp_plan",
    "num_labels", "output_attentions", "output_hidden_states", "return_dict",
    "base_model_pp_plan", "base_model_ep_plan", "base_model_fsdp_plan",
})  # fmt: skip
_HARMLESS = frozenset({"_name_or_path", "_commit_hash", "name_or_path", "_attn_implementation_autoset"})
_INTERNAL = ("_attn_implementation", "_experts_implementation", "_name_or_path", "_commit_hash", "_auto_class", "__")
_SPECIAL_FLOATS = {"Infinity": float("inf"), "-Infinity": float("-inf"), "NaN": float("nan")}


def check_settings(raw: dict[str, Any], path: Path) -> None:
    """Check the raw contents of config.json.

    Args:
        raw: the JSON object.
        path: the file, for messages.

    Raises:
        InputError: MOD-04, MOD-14, MOD-16 or MOD-17.
    """
    _check_family(raw, path)
    _check_quantization(raw, path)
    for table in (raw, *(value for value in raw.values() if isinstance(value, dict))):
        _check_sizes(table, path)


def _check_family(raw: dict[str, Any], path: Path) -> None:
    family = raw.get("model_type")
    if not isinstance(family, str) or family not in CONFIG_MAPPING:
        shown = one_line(str(family), 60)
        if raw.get("auto_map"):
            raise InputError(
                "MOD-04",
                f'model type "{shown}" needs code from the folder, which is never run',
                where=str(path),
                fix="use a family that transformers knows",
            )
        near = get_close_matches(str(family), [*CAUSAL], 1)
        fix = f"did you mean {near[0]}?" if near else "use a family that transformers knows"
        what = f'unknown model type "{shown}"' if family is not None else "model_type is missing"
        raise InputError("MOD-17", what, where=str(path), fix=fix)
    named = raw.get("architectures")
    name = named[0] if isinstance(named, list) and named and isinstance(named[0], str) else family
    if family not in CAUSAL or raw.get("is_encoder_decoder") is True or "MaskedLM" in name:
        raise InputError(
            "MOD-17", f"needs a causal LM, got {one_line(name, 60)}", where=str(path), fix="give a decoder-only model"
        )


def _check_quantization(raw: dict[str, Any], path: Path) -> None:
    for table in (raw, *(value for value in raw.values() if isinstance(value, dict))):
        for key in ("quantization_config", "compression_config"):
            found = table.get(key)
            if found:
                method = found.get("quant_method") if isinstance(found, dict) else found
                what = f'quantised folders are not supported: "{one_line(str(method), 60)}"'
                raise InputError("MOD-16", what, where=str(path), fix="use the full-precision weights")


def _check_sizes(table: dict[str, Any], path: Path) -> None:
    for key, value in table.items():
        limit = _COUNT_LIMIT if _COUNT.match(key) else _SIZE_LIMIT
        if key in _SIZES and value is not None and (type(value) is not int or value < 1):
            what = f"{key} must be a whole number >= 1, got {one_line(repr(value), 40)}"
        elif type(value) is int and value > limit and key not in _LAYERS:
            what = f"{one_line(key, 60)} = {value:,} is larger than {limit:,}"
        else:
            continue
        raise InputError("MOD-14", what, where=str(path), fix="restore the config.json of these weights")


def scrub(raw: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return settings without keys that could load code, and the names of those worth a note.

    >>> scrub({"model_type": "llama", "auto_map": {}, "_name_or_path": "x"})
    ({'model_type': 'llama'}, ['auto_map'])
    """
    kept: dict[str, Any] = {}
    ignored: list[str] = []
    for key, value in raw.items():
        if _steers_loading(key):
            ignored += [] if key in _HARMLESS else [one_line(key, 40)]
        elif isinstance(value, dict) and "__float__" not in value:
            kept[key], inner = scrub(value)
            ignored += inner
        else:
            kept[key] = value
    return {key: _special_floats(value) for key, value in kept.items()}, ignored


def _steers_loading(key: str) -> bool:
    """Tell whether a key names code or files, or would replace a method of the config object."""
    return key in _DANGEROUS or key.startswith(_INTERNAL) or callable(getattr(PreTrainedConfig, key, None))


def _special_floats(value: Any) -> Any:
    """Return a value with transformers' spelling of infinities and NaN read.

    >>> _special_floats([0.0, {"__float__": "Infinity"}])
    [0.0, inf]
    """
    if isinstance(value, list):
        return [_special_floats(item) for item in value]
    if isinstance(value, dict) and [*value] == ["__float__"]:
        return _SPECIAL_FLOATS.get(str(value["__float__"]), value)
    return value
