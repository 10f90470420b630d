"""What a config says of halves of layers that are left out; read without a library that loads models."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdcli.errors import InputError
from kdcli.text import one_line

FIELD = "kd_left_out"
"""The entry of config.json: ``{"attention": [2, 3], "mlp": []}``, by number of the layer."""
HALVES = ("attention", "mlp")


@dataclass(frozen=True)
class LeftOut:
    """Layers that lack a half, by number.

    Args:
        attention: those without attention.
        mlp: those without feed-forward half.
    """

    attention: tuple[int, ...] = ()
    mlp: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.attention or self.mlp)

    def __str__(self) -> str:
        named = {"attention": self.attention, "feed-forward half": self.mlp}
        told = [f"the {name} of layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}"
                for name, layers in named.items() if layers]  # fmt: skip
        return " and ".join(told)

    def as_setting(self) -> dict[str, list[int]]:
        """Return the entry of a config."""
        return {"attention": list(self.attention), "mlp": list(self.mlp)}


def left_out_of(config: Any) -> LeftOut:
    """Return the halves that a config says are left out.

    Args:
        config: of the language model.

    Raises:
        InputError: MOD-27, the entry is not of that form, or names what cannot be left out.
    """
    given = getattr(config, FIELD, None)
    if given is None:
        return LeftOut()
    layers = config.num_hidden_layers
    known = isinstance(given, Mapping) and not set(given) - set(HALVES)
    named = list(given.values()) if known else [None]
    if not all(isinstance(one, list) and set(one) <= set(range(layers)) for one in named):
        raise refuse_entry(f"names no layers below {layers}: {one_line(str(given), 80)}")
    found = LeftOut(*(tuple(sorted(set(given.get(half, ())))) for half in HALVES))
    if held := set(found.attention) & set(cache_holders(config)):
        raise refuse_entry(f"the attention of layer {min(held)} holds the length of the KV cache")
    return found


def cache_holders(config: Any) -> tuple[int, ...]:
    """Return the first layer of each kind of attention; the length of a KV cache is read from these.

    >>> from transformers import LlamaConfig
    >>> cache_holders(LlamaConfig())
    (0,)
    """
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    return tuple(sorted(kinds.index(kind) for kind in set(kinds)))


def refuse_entry(what: str, fix: str = "restore config.json") -> InputError:
    """Return the error of an entry that cannot be."""
    return InputError("MOD-27", what, where=f"config.json's {FIELD}", fix=fix)
