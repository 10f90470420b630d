"""GGUF files of Llama, Qwen2 and GPT-2: written through the package ``gguf``, and read back as weights."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedConfig

from kdcli.end_tokens import EndTokens
from kdcli.errors import InputError, IntegrityError
from kdcli.exports.vocabulary import Vocabulary
from kdcli.text import one_line

FILE = "model.gguf"
BLOCK = 32
"""Numbers that share one scale in Q8_0 and Q4_0."""
_HALF = 2.0**-11
"""Greatest relative error of a scale that is rounded to 16 bits."""


@dataclass(frozen=True)
class Rounding:
    """How far the weights of one type moved, in steps of their blocks.

    Args:
        tensors: how many are of it.
        largest: error, as a share of the block's step.
        bound: what it cannot exceed.
    """

    tensors: int
    largest: float
    bound: float


@dataclass(frozen=True)
class _Kind:
    """A type of rounded weights.

    Args:
        levels: what the greatest magnitude of a block is divided by to give its step.
        bound: of the error, in steps: half a step, a whole one where the levels end early, and the rounded scale.
        file_type: the number by which a whole file of it goes.
        outer: the type of embedding and head.
    """

    levels: int
    bound: float
    file_type: int
    outer: str


KINDS: Mapping[str, _Kind] = {
    "Q8_0": _Kind(127, 0.5 + 127 * _HALF, 7, "Q8_0"),
    "Q4_0": _Kind(8, 1.0 + 8 * _HALF, 2, "Q8_0"),
}
_PLAIN = "F32"
_NARROW = "F16"
"""Type of a matrix whose rows are no whole blocks."""


@dataclass(frozen=True)
class _Family:
    """What a family is called, and what of its settings the format can say.

    Args:
        architecture: its name in a file.
        fixed: setting -> values that its readers take for granted.
        numbers: key behind the architecture -> setting.
        turned: endings of names of matrices that are kept the other way round.
        interleaved: ending of a name -> setting of its heads: their rotary halves alternate in a file.
        rotary: whether positions are rotations.
    """

    architecture: str
    fixed: Mapping[str, tuple[Any, ...]]
    numbers: Mapping[str, str]
    turned: tuple[str, ...] = ()
    interleaved: Mapping[str, str] = field(default_factory=dict)
    rotary: bool = True


_LLAMA_NUMBERS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "vocab_size": "vocab_size",
}
FAMILIES: Mapping[str, _Family] = {
    "llama": _Family(
        "llama",
        {"hidden_act": ("silu",), "attention_bias": (False,), "mlp_bias": (False,)},
        _LLAMA_NUMBERS,
        interleaved={"self_attn.q_proj": "num_attention_heads", "self_attn.k_proj": "num_key_value_heads"},
    ),
    "qwen2": _Family("qwen2", {"hidden_act": ("silu",), "use_sliding_window": (False,)}, _LLAMA_NUMBERS),
    "gpt2": _Family(
        "gpt2",
        {
            "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "add_cross_attention": (False,),
        },
        {
            "context_length": "n_positions",
            "embedding_length": "n_embd",
            "block_count": "n_layer",
            "attention.head_count": "n_head",
            "attention.head_count_kv": "n_head",
        },
        turned=("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"),
        rotary=False,
    ),
}


def check_family(config: PreTrainedConfig, where: str) -> None:
    """Refuse a model that the format cannot hold, before weights are read.

    Args:
        config: of the model.
        where: its folder.

    Raises:
        InputError: EXPORT-03, the family, or a setting that its readers take for granted.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        known = ", ".join(FAMILIES)
        what = f"GGUF is written for {known}, and this is {one_line(str(config.model_type), 40)}"
        raise InputError("EXPORT-03", what, where=one_line(where), fix="give --to safetensors:int8")
    settings: dict[str, tuple[Any, Any]] = {
        name: (getattr(config, name, values[0]), values) for name, values in family.fixed.items()
    }
    if family.rotary:
        rope = config.rope_parameters
        settings["rope_type"] = (rope.get("rope_type", "default"), ("default",))
        settings["partial_rotary_factor"] = (rope.get("partial_rotary_factor") or 1.0, (1.0,))
    for name, (value, allowed) in settings.items():
        if value not in allowed:
            what = f"{name} = {one_line(str(value), 40)} has no place in GGUF's {family.architecture}"
            raise InputError("EXPORT-03", what, where=one_line(where), fix="give --to safetensors:int8")


def write_gguf(
    path: Path,
    weights: Mapping[str, Tensor],
    config: PreTrainedConfig,
    vocabulary: Vocabulary,
    special: Mapping[str, int | bool],
    *,
    name: str,
    quantizer: str = "",
    chat_template: str | None = None,
) -> dict[str, Rounding]:
    """Write a model.

    Args:
        path: the file.
        weights: by transformers' names; a head that is tied to the embedding is left out.
        config: of a family that ``check_family`` lets pass.
        vocabulary: the tokenizer's tables.
        special: numbers of special tokens, and whether they are added.
        name: what to call the model.
        quantizer: q8_0 or q4_0; empty keeps 32 bits.
        chat_template: of the tokenizer.

    Returns:
        type -> how far its weights moved.
    """
    import gguf

    family = FAMILIES[config.model_type]
    writer = gguf.GGUFWriter(str(path), family.architecture)
    kind = KINDS.get(quantizer.upper())
    writer.add_name(name)
    writer.add_file_type(kind.file_type if kind is not None else 0)
    if kind is not None:
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, value in _numbers(family, config).items():
        if isinstance(value, float):
            writer.add_float32(f"{family.architecture}.{key}", value)
        else:
            writer.add_uint32(f"{family.architecture}.{key}", value)
    _add_vocabulary(writer, vocabulary, special, chat_template)
    moved: list[tuple[str, float]] = []
    for there, value in _placed(weights, config, str(path)):
        of_type = _type_of(there, value, quantizer.upper() if kind is not None else _PLAIN)
        number = gguf.GGMLQuantizationType[of_type]
        data = gguf.quantize(value, number)
        writer.add_tensor(there, data, raw_dtype=number)
        moved.append((of_type, _error_in_steps(value, gguf.dequantize(data, number), of_type)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    counted = Counter(of_type for of_type, _ in moved)
    return {
        of_type: Rounding(
            count,
            max(error for one, error in moved if one == of_type),
            KINDS[of_type].bound if of_type in KINDS else 0.0,
        )
        for of_type, count in sorted(counted.items())
    }


def read_gguf(path: Path, config: PreTrainedConfig) -> dict[str, Tensor]:
    """Return a file's weights by transformers' names, in 32 bits.

    Args:
        path: what ``write_gguf`` wrote.
        config: that it was written with.

    Raises:
        IntegrityError: EXPORT-05, it is no such file.
    """
    import gguf

    family = FAMILIES[config.model_type]
    try:
        tensors = gguf.GGUFReader(str(path)).tensors
        found = {one.name: gguf.dequantize(one.data, one.tensor_type) for one in tensors}
        layers = 1 + max((int(name.split(".")[1]) for name in found if name.startswith("blk.")), default=-1)
        if layers != config.num_hidden_layers:
            raise ValueError(f"it holds {layers} layers, config.json asks for {config.num_hidden_layers}")
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, NotImplementedError) as error:
        what = f"cannot be read as GGUF: {one_line(str(error), 120)}"
        raise IntegrityError("EXPORT-05", what, where=str(path), fix="export the model again") from error
    weights = {}
    for ours, there in _names(config).items():
        if there in found:
            value = torch.from_numpy(np.array(found[there], dtype=np.float32))
            weights[ours] = _back(value, ours, family, config).contiguous()
    return weights


def special_tokens(tokenizer: Any, ends: EndTokens) -> dict[str, int | bool]:
    """Return the numbers of special tokens, and whether the tokenizer adds them to a text.

    Args:
        tokenizer: the model's.
        ends: the tokens that end its texts.
    """
    numbers = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": ends.default if ends.ids else tokenizer.eos_token_id,
        "unknown_token_id": tokenizer.unk_token_id,
        "padding_token_id": tokenizer.pad_token_id,
    }
    others = [one for one in ends.ids if one != numbers["eos_token_id"]]
    if others:
        numbers["eot_token_id"] = others[0]
    ids = tokenizer("a")["input_ids"]
    added = {
        "add_bos_token": bool(ids) and ids[0] == tokenizer.bos_token_id,
        "add_eos_token": bool(ids) and len(ids) > 1 and ids[-1] == tokenizer.eos_token_id,
    }
    return {name: value for name, value in numbers.items() if value is not None} | added


def _numbers(family: _Family, config: PreTrainedConfig) -> dict[str, int | float]:
    found: dict[str, int | float] = {key: int(getattr(config, name)) for key, name in family.numbers.items()}
    if family.rotary:
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        found |= {"attention.key_length": size, "attention.value_length": size, "rope.dimension_count": size}
        found |= {"rope.freq_base": float(config.rope_parameters["rope_theta"])}
        found |= {"attention.layer_norm_rms_epsilon": float(config.rms_norm_eps)}
    else:
        found["feed_forward_length"] = int(config.n_inner or 4 * config.n_embd)
        found["attention.layer_norm_epsilon"] = float(config.layer_norm_epsilon)
    return found


def _add_vocabulary(
    writer: Any, vocabulary: Vocabulary, special: Mapping[str, int | bool], chat_template: str | None
) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.split)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    for key, value in special.items():
        (writer.add_bool if isinstance(value, bool) else writer.add_uint32)(f"tokenizer.ggml.{key}", value)
    if vocabulary.space_first is not None:
        writer.add_add_space_prefix(vocabulary.space_first)
    if chat_template is not None:
        writer.add_chat_template(chat_template)


def _names(config: PreTrainedConfig) -> dict[str, str]:
    """Return transformers' name of each weight that a file holds -> its name there."""
    import gguf
    from transformers import AutoModelForCausalLM

    family = FAMILIES[config.model_type]
    number = next(one for one, name in gguf.MODEL_ARCH_NAMES.items() if name == family.architecture)
    known = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    with torch.device("meta"):
        state = AutoModelForCausalLM.from_config(config).state_dict()
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    return {name: known.get_name(name, (".weight", ".bias")) or name for name in state if name not in tied}


def _placed(weights: Mapping[str, Tensor], config: PreTrainedConfig, where: str) -> Iterator[tuple[str, NDArray[Any]]]:
    """Give each weight as it stands in a file, in 32 bits, under its name there."""
    family, names = FAMILIES[config.model_type], _names(config)
    for name, there in names.items():
        if there == name:
            what = f"the weight {one_line(name, 80)} has no place in GGUF's {family.architecture}"
            raise InputError("EXPORT-03", what, where=one_line(where), fix="give --to safetensors:int8")
        value = weights[name].detach().float()
        if name.endswith(family.turned):
            value = value.T
        heads = _heads(name, family, config)
        if heads:
            value = value.reshape(heads, 2, -1, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)
        yield there, value.contiguous().numpy()


def _back(value: Tensor, name: str, family: _Family, config: PreTrainedConfig) -> Tensor:
    """Undo what ``_placed`` does to the order of a weight's numbers."""
    heads = _heads(name, family, config)
    if heads:
        value = value.reshape(heads, -1, 2, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)
    return value.T if name.endswith(family.turned) else value


def _heads(name: str, family: _Family, config: PreTrainedConfig) -> int:
    setting = next((one for ending, one in family.interleaved.items() if f".{ending}." in name), None)
    return int(getattr(config, setting)) if setting is not None else 0


def _type_of(name: str, value: NDArray[Any], wanted: str) -> str:
    """Return the type in which a weight is kept: matrices alone are rounded, and never those of positions."""
    if wanted == _PLAIN or value.ndim < 2 or name == "position_embd.weight":
        return _PLAIN
    if value.shape[-1] % BLOCK:
        return _NARROW
    return KINDS[wanted].outer if name in ("token_embd.weight", "output.weight") else wanted


def _error_in_steps(value: NDArray[Any], read: NDArray[Any], of_type: str) -> float:
    """Return the greatest error of a weight, in steps of its block; of a type without blocks, as it is."""
    error = np.abs(value.astype(np.float64) - read.astype(np.float64).reshape(value.shape))
    if of_type not in KINDS:
        return float(error.max(initial=0.0))
    blocks = error.reshape(-1, BLOCK)
    steps = np.abs(value.astype(np.float64)).reshape(-1, BLOCK).max(-1, keepdims=True) / KINDS[of_type].levels
    return float((blocks / np.where(steps > 0, steps, 1.0)).max(initial=0.0))
