"""Layers without their attention, or without their feed-forward half: ``h <- h`` instead of ``h <- h + f(norm h)``.

In the files the weights of such a half are 0, which is the same function and loads everywhere, at the same speed. The
config says which they are, in a field of kd's own; loaded by kd, the module is not there: less time, smaller KV cache.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from kdcli.models.family_layout import family_of
from kdcli.models.left_out import FIELD, LeftOut, left_out_of, refuse_entry


class NoAttention(nn.Module):
    """Adds nothing, in the place of an attention; keeps no keys and values."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        """Return zeros of the shape of what is read, and no attention map."""
        return torch.zeros_like(hidden_states), None


class NoFeedForward(nn.Module):
    """Adds nothing, in the place of a feed-forward half."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return zeros of the shape of what is read."""
        return torch.zeros_like(hidden_states)


def leave_out(model: PreTrainedModel) -> LeftOut:
    """Take the halves out of a model that its config says are left out; return them.

    Args:
        model: a causal LM, just loaded; changed. Where they were taken out before, nothing is done.

    Raises:
        InputError: MOD-27, the weights of one are not 0, so that it is no half that adds nothing.
    """
    found = left_out_of(model.config)
    if not found:
        return found
    family = family_of(model.config, "config.json")
    for layer in found.attention:
        block = model.get_submodule(f"{family.layers}{layer}")
        if isinstance(block.get_submodule(family.attention), NoAttention):
            continue
        _check_zero(block.get_submodule(family.heads), f"the attention of layer {layer}")
        block.set_submodule(family.attention, NoAttention())
    for layer in found.mlp:
        block = model.get_submodule(f"{family.layers}{layer}")
        *before, last = family.mlp
        if isinstance(block.get_submodule(last), NoFeedForward):
            continue
        _check_zero(block.get_submodule(family.units), f"the feed-forward half of layer {layer}")
        for name in before:
            block.set_submodule(name, nn.Identity())
        block.set_submodule(last, NoFeedForward())
    return found


def _check_zero(module: nn.Module, what: str) -> None:
    if any(bool(value.any()) for value in module.parameters() if not value.is_meta):
        raise refuse_entry(f"says that {what} adds nothing, and its weights are not 0", "remove the entry")


def zero_out(model: PreTrainedModel, halves: LeftOut) -> None:
    """Set all weights of some halves to 0, and say so in the config.

    Args:
        model: a causal LM of a family known here; changed.
        halves: which.
    """
    family = family_of(model.config, "the model")
    with torch.no_grad():
        for layer in halves.attention:
            for value in model.get_submodule(f"{family.layers}{layer}.{family.attention}").parameters():
                value.zero_()
        for layer in halves.mlp:
            for name in family.mlp:
                for value in model.get_submodule(f"{family.layers}{layer}.{name}").parameters():
                    value.zero_()
    setattr(model.config, FIELD, halves.as_setting())


def whole_state(model: PreTrainedModel) -> dict[str, Tensor] | None:
    """Return a model's weights with zeros for the halves that were left out; None where none was.

    Args:
        model: a causal LM.
    """
    if not left_out_of(model.config):
        return None
    with torch.device("meta"):
        shapes = AutoModelForCausalLM.from_config(model.config).state_dict()
    own, dtype = model.state_dict(), model.dtype
    return {name: own[name] if name in own else torch.zeros(value.shape, dtype=dtype) for name, value in shapes.items()}
