"""A cache of keys and values with room for the whole answer, so that no step copies what is in it."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer


class RoomyLayer(DynamicLayer):
    """Keys and values of one layer, written into room set aside at the start.

    transformers' own layer concatenates at each step, which copies all earlier ones; on the CPU
    that takes most of the time of generation.

    Args:
        room: positions to set aside.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self._all_keys: Tensor | None = None
        self._all_values: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values ``[b heads new d]``; returns all of them, ``[b heads seen d]``."""
        if self._all_keys is None or self._all_values is None:
            self.lazy_initialization(key_states, value_states)
            self._all_keys = key_states.new_empty(*key_states.shape[:2], self.room, key_states.shape[-1])
            self._all_values = value_states.new_empty(*value_states.shape[:2], self.room, value_states.shape[-1])
        seen = self.get_seq_length()
        after = seen + key_states.shape[-2]
        self._all_keys[:, :, seen:after] = key_states
        self._all_values[:, :, seen:after] = value_states
        self.keys, self.values = self._all_keys[:, :, :after], self._all_values[:, :, :after]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows.

        Args:
            indices: places of the rows that stay.
        """
        if self._all_keys is None or self._all_values is None:
            return
        seen = self.get_seq_length()
        self._all_keys, self._all_values = self._all_keys[indices], self._all_values[indices]
        self.keys, self.values = self._all_keys[:, :, :seen], self._all_values[:, :, :seen]


def roomy_cache(config: PreTrainedConfig, room: int) -> DynamicCache:
    """Return a cache for a model; layers with full attention have room, others are transformers' own.

    Args:
        config: the model's config.
        room: positions that prompt and answer will take at most.
    """
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def rows_can_leave(layers: Sequence[object]) -> bool:
    """Whether every layer of a cache can drop rows; recurrent ones cannot."""
    return all(hasattr(layer, "batch_select_indices") for layer in layers)
