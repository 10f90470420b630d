"""The slicing operator: keeps some layers, groups of heads, feed-forward units and hidden dimensions of a model.

Reordering any of them is a symmetry of the network: the same logits. A slice of the first entries after a reordering
is the same as keeping those entries in their place, which is what is done here.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from kdcli.models.family_layout import Axis, Form, axes_of, family_of, form_of
from kdcli.models.weights import model_class_of, silence_transformers

_BY_LAYER = ("layer_types",)
PALETTE = "kd_supernet"
"""The entry of config.json that holds the sizes of a supernet; a slice is one of them and has none."""


@dataclass(frozen=True)
class Kept:
    """What stays of a model, by number in the model; the order is that of the slice.

    Args:
        layers: layers.
        groups: for each of these layers, its groups of heads.
        ffn: for each of these layers, its feed-forward units.
        width: hidden dimensions.
    """

    layers: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...]
    ffn: tuple[tuple[int, ...], ...]
    width: tuple[int, ...]

    @classmethod
    def everything(cls, form: Form) -> "Kept":
        """Return what keeps a whole model as it is."""
        layers, groups, units = range(form.layers), tuple(range(form.groups)), tuple(range(form.ffn))
        return cls(tuple(layers), (groups,) * form.layers, (units,) * form.layers, tuple(range(form.width)))

    def form(self, of: Form) -> Form:
        """Return the sizes of the slice of a model of these sizes."""
        width = len(self.width)
        return Form(
            len(self.layers), len(self.groups[0]), of.heads_per_group, of.head_size, len(self.ffn[0]), width,
            width if of.embedding == of.width else of.embedding,
        )  # fmt: skip


def slice_model(model: PreTrainedModel, kept: Kept, where: str = "the model") -> PreTrainedModel:
    """Return the slice of a model as a model of its own; the model itself is not changed.

    Args:
        model: a causal LM of a family known here.
        kept: what stays.
        where: the model, for messages.

    Raises:
        InputError: CUT-01, the family or one of its tensors is not known here.
    """
    state = slice_state(model.state_dict(), model.config, kept, where)
    config = slice_config(model.config, kept, where)
    with silence_transformers():
        loaded: Any = model_class_of(config).from_pretrained(
            None, config=config, state_dict=state, dtype=model.dtype, local_files_only=True, output_loading_info=True
        )
    made, info = loaded
    assert not any(info.values()), f"a slice holds all that its config asks for, and nothing else: {info}"
    made.generation_config = copy.deepcopy(model.generation_config)
    return made.train(model.training)


def slice_state(
    state: Mapping[str, Tensor], config: PreTrainedConfig, kept: Kept, where: str = "the model"
) -> dict[str, Tensor]:
    """Return the slice of a model's weights, under the names that they have in the slice.

    Args:
        state: name -> weight of the model.
        config: the model's config.
        kept: what stays.
        where: the model, for messages.

    Raises:
        InputError: CUT-01.
    """
    found = ((part, part.of(state[part.source])) for part in slice_parts(state, config, kept, where))
    return {part.name: value.contiguous() for part, value in found}


@dataclass(frozen=True)
class SlicePart:
    """Where a tensor of a slice comes from.

    Args:
        name: its name in the slice.
        source: the model's tensor that it is a part of.
        entries: dimension -> the entries that stay; all of the other dimensions do.
    """

    name: str
    source: str
    entries: Mapping[int, Tensor]

    def of(self, value: Tensor) -> Tensor:
        """Return the part of a tensor; its gradient goes back to these entries."""
        for dimension, index in self.entries.items():
            value = value.index_select(dimension, index.to(value.device))
        return value


def slice_parts(
    names: Iterable[str], config: PreTrainedConfig, kept: Kept, where: str = "the model"
) -> list[SlicePart]:
    """Return where each tensor of a slice comes from.

    Args:
        names: the model's tensors.
        config: the model's config.
        kept: what stays.
        where: the model, for messages.

    Raises:
        InputError: CUT-01.
    """
    family, form = family_of(config, where), form_of(config, where)
    places = {layer: place for place, layer in enumerate(kept.layers)}
    found: list[SlicePart] = []
    for name in names:
        layer, axes = axes_of(family, name, where)
        if layer is not None and layer not in places:
            continue
        place = 0 if layer is None else places[layer]
        given = {dimension: _entries(axis, kept, place, form) for dimension, axis in enumerate(axes)}
        entries = {dimension: index for dimension, index in given.items() if index is not None}
        new = name if layer is None else name.replace(f"{family.layers}{layer}.", f"{family.layers}{place}.", 1)
        found.append(SlicePart(new, name, entries))
    return found


def _entries(axis: Axis, kept: Kept, place: int, form: Form) -> Tensor | None:
    """Return the entries of a dimension that stay; None if all of it does."""
    if axis == "width" or (axis == "embedding" and form.embedding == form.width):
        return torch.tensor(kept.width, dtype=torch.int64)
    if axis == "ffn":
        return torch.tensor(kept.ffn[place], dtype=torch.int64)
    return None if axis in ("", "embedding") else form.entries(axis, kept.groups[place])


def slice_config(config: PreTrainedConfig, kept: Kept, where: str = "the model") -> PreTrainedConfig:
    """Return the config of a slice."""
    return config_of(config, kept.form(form_of(config, where)), kept.layers, where)


def config_of(
    config: PreTrainedConfig, form: Form, layers: tuple[int, ...] | None = None, where: str = "the model"
) -> PreTrainedConfig:
    """Return a config of other sizes.

    Args:
        config: the teacher's.
        form: the sizes.
        layers: the layers that stay, by number in the teacher; None for the first ones.
        where: the teacher, for messages.
    """
    family, made = family_of(config, where), config.to_dict()
    names = {"num_hidden_layers": form.layers, "hidden_size": form.width, "num_attention_heads": form.heads}
    for name, value in names.items():
        made[config.attribute_map.get(name, name)] = value
    made[family.ffn] = form.ffn
    if "num_key_value_heads" in made:
        made["num_key_value_heads"] = form.groups
    if not family.spans or made.get("head_dim") is not None:
        made["head_dim"] = form.head_size
    if "word_embed_proj_dim" in made:
        made["word_embed_proj_dim"] = form.embedding
    for name in _BY_LAYER:
        if made.get(name):
            made[name] = [made[name][layer] for layer in (layers or range(form.layers))]
    for name in ("architectures", "transformers_version", PALETTE):
        made.pop(name, None)
    with silence_transformers():
        return CONFIG_MAPPING[config.model_type](**made)


def refused_by_config(config: PreTrainedConfig, form: Form, where: str = "the model") -> str:
    """Return why a family's own configuration takes no model of these sizes; empty where it does."""
    try:
        config_of(config, form, where=where)
    except StrictDataclassClassValidationError as error:
        return str(error.__cause__ or error).rstrip(".")
    return ""


def counter(config: PreTrainedConfig, where: str = "the model") -> Callable[[Form], int]:
    r"""Return a function that counts the parameters of slices of a model: :math:`\sum_{tensors} \prod_{dims} n`.

    Args:
        config: the model's; nothing but its shapes is looked at.
        where: the model, for messages.
    """
    family = family_of(config, where)
    with torch.device("meta"), silence_transformers():
        empty = AutoModelForCausalLM.from_config(config)
    shapes = [(axes_of(family, name, where), tuple(one.shape)) for name, one in empty.named_parameters()]
    once = [(axes, shape) for (layer, axes), shape in shapes if layer is None]
    each = [(axes, shape) for (layer, axes), shape in shapes if layer == 0]

    def count(form: Form) -> int:
        return _numbers(once, form) + form.layers * _numbers(each, form)

    return count


def _numbers(tensors: list[tuple[tuple[Axis, ...], tuple[int, ...]]], form: Form) -> int:
    total = 0
    for axes, shape in tensors:
        product = 1
        for axis, length in zip(axes, shape, strict=True):
            product *= form.length(axis) or length
        total += product
    return total
