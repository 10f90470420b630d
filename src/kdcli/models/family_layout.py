"""Which dimension of which tensor belongs to what, for the families that a student can be cut out of.

A transformer has four sizes that can be cut: layers, groups of heads that share keys and values, units of the
feed-forward layers, and the width of a hidden state. ``tests/students/test_families.py`` names every tensor and module
that stands here and builds each family to find them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from kdcli.errors import InputError
from kdcli.text import one_line

Axis: TypeAlias = Literal["", "width", "embedding", "ffn", "query", "key", "query-key-value", "head-by-head"]
"""What a dimension counts: nothing that is cut, hidden dimensions, those of the embedding (the same in most families),
feed-forward units, the numbers of all query heads or of all key heads, the three of them one after the other, or
query, key and value of the first head, then of the second."""

Axes: TypeAlias = dict[str, tuple[Axis, ...]]
"""Names of tensors -> what their dimensions count."""

_LINEAR: dict[str, Axis] = {"q_proj": "query", "k_proj": "key", "v_proj": "key"}


@dataclass(frozen=True)
class Family:
    """Where a family keeps its parts; names of tensors and modules are those of transformers.

    Args:
        layers: what stands before a layer's number in a tensor's name.
        outside: tensors outside the layers -> what their dimensions count.
        inside: tensors of a layer, named from the layer on -> what their dimensions count.
        ffn: the setting that holds the number of feed-forward units.
        attention: the attention's module in a layer.
        attends: the module whose output is added to the hidden states for the attention.
        heads: the matrix that reads what the heads give.
        mlp: modules of the feed-forward half; what the last one gives is added to the hidden states.
        adds: the module whose output is added instead, where it is another.
        units: the matrix that reads the feed-forward units.
        spans: whether the heads span the width exactly, so that neither can be cut without the other.
    """

    layers: str
    outside: Axes
    inside: Axes
    ffn: str
    attention: str
    attends: str
    heads: str
    mlp: tuple[str, ...]
    units: str
    adds: str = ""
    spans: bool = False

    @property
    def mlp_output(self) -> str:
        """The module whose output is added to the hidden states for the feed-forward half."""
        return self.adds or self.mlp[-1]


def _llama(*norms: str, adds: str = "", attends: str = "self_attn", spans: bool = False) -> Family:
    """Return the layout of Llama and its kin."""
    names = ("input_layernorm", "post_attention_layernorm", *norms)
    weights: Axes = {f"self_attn.{name}.weight": (axis, "width") for name, axis in _LINEAR.items()}
    biases: Axes = {f"self_attn.{name}.bias": (axis,) for name, axis in _LINEAR.items()}
    scales: Axes = {f"{name}.weight": ("width",) for name in names}
    return Family(
        layers="model.layers.",
        outside={
            "model.embed_tokens.weight": ("", "width"),
            "model.norm.weight": ("width",),
            "lm_head.weight": ("", "width"),
        },
        inside={
            **weights,
            **biases,
            "self_attn.o_proj.weight": ("width", "query"),
            "self_attn.o_proj.bias": ("width",),
            "self_attn.q_norm.weight": ("",),
            "self_attn.k_norm.weight": ("",),
            "self_attn.attn_sub_norm.weight": ("query",),
            "mlp.gate_proj.weight": ("ffn", "width"),
            "mlp.gate_proj.bias": ("ffn",),
            "mlp.up_proj.weight": ("ffn", "width"),
            "mlp.up_proj.bias": ("ffn",),
            "mlp.down_proj.weight": ("width", "ffn"),
            "mlp.down_proj.bias": ("width",),
            "mlp.ffn_sub_norm.weight": ("ffn",),
            **scales,
        },
        ffn="intermediate_size",
        attention="self_attn",
        attends=attends,
        heads="self_attn.o_proj",
        mlp=("mlp",),
        units="mlp.down_proj",
        adds=adds,
        spans=spans,
    )


_GPT2 = Family(
    layers="transformer.h.",
    outside={
        "transformer.wte.weight": ("", "width"),
        "transformer.wpe.weight": ("", "width"),
        "transformer.ln_f.weight": ("width",),
        "transformer.ln_f.bias": ("width",),
        "lm_head.weight": ("", "width"),
    },
    inside={
        "ln_1.weight": ("width",),
        "ln_1.bias": ("width",),
        "attn.c_attn.weight": ("width", "query-key-value"),
        "attn.c_attn.bias": ("query-key-value",),
        "attn.c_proj.weight": ("query", "width"),
        "attn.c_proj.bias": ("width",),
        "ln_2.weight": ("width",),
        "ln_2.bias": ("width",),
        "mlp.c_fc.weight": ("width", "ffn"),
        "mlp.c_fc.bias": ("ffn",),
        "mlp.c_proj.weight": ("ffn", "width"),
        "mlp.c_proj.bias": ("width",),
    },
    ffn="n_inner",
    attention="attn",
    attends="attn",
    heads="attn.c_proj",
    mlp=("mlp",),
    units="mlp.c_proj",
    spans=True,
)

_OPT = Family(
    layers="model.decoder.layers.",
    outside={
        "model.decoder.embed_tokens.weight": ("", "embedding"),
        "model.decoder.embed_positions.weight": ("", "width"),
        "model.decoder.project_in.weight": ("width", "embedding"),
        "model.decoder.project_out.weight": ("embedding", "width"),
        "model.decoder.final_layer_norm.weight": ("width",),
        "model.decoder.final_layer_norm.bias": ("width",),
        "lm_head.weight": ("", "embedding"),
    },
    inside={
        **{f"self_attn.{name}.weight": ("query", "width") for name in _LINEAR},
        **{f"self_attn.{name}.bias": ("query",) for name in _LINEAR},
        "self_attn.out_proj.weight": ("width", "query"),
        "self_attn.out_proj.bias": ("width",),
        "self_attn_layer_norm.weight": ("width",),
        "self_attn_layer_norm.bias": ("width",),
        "fc1.weight": ("ffn", "width"),
        "fc1.bias": ("ffn",),
        "fc2.weight": ("width", "ffn"),
        "fc2.bias": ("width",),
        "final_layer_norm.weight": ("width",),
        "final_layer_norm.bias": ("width",),
    },
    ffn="ffn_dim",
    attention="self_attn",
    attends="self_attn",
    heads="self_attn.out_proj",
    mlp=("fc1", "fc2"),
    units="fc2",
    spans=True,
)

_NEOX = Family(
    layers="gpt_neox.layers.",
    outside={
        "gpt_neox.embed_in.weight": ("", "width"),
        "gpt_neox.final_layer_norm.weight": ("width",),
        "gpt_neox.final_layer_norm.bias": ("width",),
        "embed_out.weight": ("", "width"),
        "lm_head.weight": ("", "width"),
    },
    inside={
        "input_layernorm.weight": ("width",),
        "input_layernorm.bias": ("width",),
        "post_attention_layernorm.weight": ("width",),
        "post_attention_layernorm.bias": ("width",),
        "attention.query_key_value.weight": ("head-by-head", "width"),
        "attention.query_key_value.bias": ("head-by-head",),
        "attention.dense.weight": ("width", "query"),
        "attention.dense.bias": ("width",),
        "mlp.dense_h_to_4h.weight": ("ffn", "width"),
        "mlp.dense_h_to_4h.bias": ("ffn",),
        "mlp.dense_4h_to_h.weight": ("width", "ffn"),
        "mlp.dense_4h_to_h.bias": ("width",),
    },
    ffn="intermediate_size",
    attention="attention",
    attends="attention",
    heads="attention.dense",
    mlp=("mlp",),
    units="mlp.dense_4h_to_h",
    spans=True,
)

FAMILIES = {
    "bitnet": _llama(spans=True),
    "gemma2": _llama(
        "pre_feedforward_layernorm", "post_feedforward_layernorm",
        attends="post_attention_layernorm", adds="post_feedforward_layernorm",
    ),
    "gpt2": _GPT2,
    "gpt_neox": _NEOX,
    "llama": _llama(),
    "mistral": _llama(),
    "opt": _OPT,
    "qwen2": _llama(),
    "qwen3": _llama(),
}  # fmt: skip
"""The families that a student can be cut out of, by ``model_type``."""


def family_of(config: PreTrainedConfig, where: str) -> Family:
    """Return where a model's family keeps its parts.

    Args:
        config: of the language model.
        where: the model, for messages.

    Raises:
        InputError: CUT-01, the family is not known here, or this variant of it cannot be cut.
    """
    found = FAMILIES.get(config.model_type)
    if found is None:
        what = f"no student can be cut out of the family {one_line(str(config.model_type), 60)}"
        fix = f"give a teacher of {', '.join(FAMILIES)}, or a random: student"
        raise InputError("CUT-01", what, where=one_line(where), fix=fix)
    for name in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        if getattr(config, name, False):
            raise InputError(
                "CUT-01", f"no student can be cut out of a {config.model_type} with {name}", where=one_line(where),
                fix="give another teacher, or a random: student",
            )  # fmt: skip
    return found


@dataclass(frozen=True)
class Form:
    """The sizes of a model.

    Args:
        layers: how many.
        groups: groups of query heads that share keys and values.
        heads_per_group: query heads of a group.
        head_size: numbers of a head.
        ffn: feed-forward units of a layer.
        width: numbers of a hidden state.
        embedding: numbers of a token's embedding.
    """

    layers: int
    groups: int
    heads_per_group: int
    head_size: int
    ffn: int
    width: int
    embedding: int

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.groups * self.heads_per_group

    def length(self, axis: Axis) -> int | None:
        """Return how long a dimension is; None where it is not cut."""
        return {
            "width": self.width,
            "embedding": self.embedding,
            "ffn": self.ffn,
            "query": self.heads * self.head_size,
            "key": self.groups * self.head_size,
            "query-key-value": 3 * self.heads * self.head_size,
            "head-by-head": 3 * self.heads * self.head_size,
        }.get(axis)

    def entries(self, axis: Axis, groups: Sequence[int]) -> Tensor:
        """Return which entries of a dimension belong to some groups of heads, in their order, ``[n]``.

        >>> form = Form(layers=1, groups=2, heads_per_group=2, head_size=1, ffn=4, width=4, embedding=4)
        >>> form.entries("query", [1]).tolist(), form.entries("key", [1]).tolist()
        ([2, 3], [1])
        """
        block = {"query": self.heads_per_group, "key": 1, "query-key-value": 1, "head-by-head": 3}[axis]
        size = block * self.head_size
        found = torch.tensor([range(group * size, (group + 1) * size) for group in groups], dtype=torch.int64)
        flat = found.flatten()
        if axis != "query-key-value":
            return flat
        whole = self.heads * self.head_size
        return torch.cat([flat, flat + whole, flat + 2 * whole])


def form_of(config: PreTrainedConfig, where: str) -> Form:
    """Return the sizes that a config of a family known here asks for.

    Args:
        config: of the language model.
        where: the model, for messages.

    Raises:
        InputError: CUT-01, the family is not known here.
    """
    family = family_of(config, where)
    heads: int = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    width: int = config.hidden_size
    ffn = getattr(config, family.ffn) or 4 * width
    head = width // heads if family.spans else getattr(config, "head_dim", None) or width // heads
    embedding = getattr(config, "word_embed_proj_dim", None) or width
    return Form(config.num_hidden_layers, groups, heads // groups, head, ffn, width, embedding)


def axes_of(family: Family, name: str, where: str) -> tuple[int | None, tuple[Axis, ...]]:
    """Return a tensor's layer, None outside the layers, and what its dimensions count.

    Args:
        family: the model's.
        name: the tensor's name in the model's state.
        where: the model, for messages.

    Raises:
        InputError: CUT-01, a tensor that is not known here.
    """
    if name.startswith(family.layers):
        number, _, rest = name.removeprefix(family.layers).partition(".")
        if number.isdecimal() and rest in family.inside:
            return int(number), family.inside[rest]
    elif name in family.outside:
        return None, family.outside[name]
    what = f"it holds {one_line(name, 80)}, which kd does not know how to cut"
    raise InputError("CUT-01", what, where=one_line(where), fix="give another teacher, or a random: student")
