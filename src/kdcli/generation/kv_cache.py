"""A KV cache whose rows join and leave."""

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig

from kdcli.models.internals import PLAIN, DynamicLayer, NoLayer, prompt_cache
from kdcli.models.left_out import left_out_of

KVState: TypeAlias = list[tuple[Tensor, Tensor]]
"""Keys and values of one row, a pair for each layer that has some, ``[heads seen d]``."""


@dataclass
class Window:
    """Which part of the room is in use, the same in all layers.

    Args:
        rows: rows in use, the first ones.
        begin: first column that some row uses.
        end: column after the last; every row's newest token is at its left.
    """

    rows: int = 0
    begin: int = 0
    end: int = 0


class RowsLayer(DynamicLayer):
    """Keys and values of one layer, in room set aside once.

    transformers' own layer concatenates at each step, which copies all earlier ones; on the CPU
    that takes most of the time of generation.

    Args:
        window: what is in use; whoever owns the cache moves it.
    """

    def __init__(self, window: Window) -> None:
        super().__init__()
        self.window = window
        self.all_keys: Tensor | None = None
        self.all_values: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write keys and values ``[b heads new d]`` at the window's end; returns what is visible then."""
        assert self.all_keys is not None
        assert self.all_values is not None
        at = self.window
        after = at.end + key_states.shape[-2]
        self.all_keys[: at.rows, :, at.end : after] = key_states
        self.all_values[: at.rows, :, at.end : after] = value_states
        seen = slice(0, at.rows), slice(None), slice(at.begin, after)
        return self.all_keys[seen], self.all_values[seen]

    def get_seq_length(self) -> int:
        """Return the columns in use."""
        return self.window.end - self.window.begin


class RowCache:
    """The keys and values of several rows; every row ends in the same column.

    Args:
        config: the model's config.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        self.window = Window()
        self.cache = DynamicCache(config=config)
        self._layers: list[RowsLayer] = []
        without = set(left_out_of(config).attention)
        for place, layer in enumerate(self.cache.layers):
            if place in without:
                self.cache.layers[place] = NoLayer()
            elif type(layer) in PLAIN:
                self._layers.append(RowsLayer(self.window))
                self.cache.layers[place] = self._layers[-1]
        self.lengths: list[int] = []
        self.offsets: list[int] = []
        self._slots = self._columns = 0

    def reserve(self, slots: int, columns: int) -> None:
        """Set room aside for so many rows of so many tokens; what is kept stays."""
        self._slots, self._columns = slots, columns
        seen = self._seen()
        for layer in self._layers:
            if layer.all_keys is not None and layer.all_values is not None:
                layer.all_keys = _moved(layer.all_keys, seen, slots, columns)
                layer.all_values = _moved(layer.all_values, seen, slots, columns)
        self._shift_window()

    def add(self, kept: KVState, length: int, offset: int = 0) -> None:
        """Add a row that has read ``length`` tokens, no more than the longest row there is, if there is one.

        Args:
            kept: its keys and values.
            length: how many tokens it has read.
            offset: by how much the positions of its further tokens differ from their numbers.
        """
        assert len(self.lengths) < self._slots, "reserve room first"
        at = self.window
        if not self.lengths:
            at.begin, at.end = 0, length
        assert length <= at.end, "rows come with the longest prompts first"
        span = len(self.lengths), slice(None), slice(at.end - length, at.end)
        for layer, (keys, values) in zip(self._layers, kept, strict=True):
            if layer.all_keys is None or layer.all_values is None:
                layer.all_keys = keys.new_zeros(self._slots, keys.shape[0], self._columns, keys.shape[-1])
                layer.all_values = values.new_zeros(self._slots, values.shape[0], self._columns, values.shape[-1])
            layer.all_keys[span], layer.all_values[span] = keys, values
        self.lengths.append(length)
        self.offsets.append(offset)
        at.rows, at.begin = len(self.lengths), min(at.begin, at.end - length)

    def remove(self, row: int) -> None:
        """Forget a row; the last row takes its place."""
        seen, last = self._seen(), len(self.lengths) - 1
        if row != last:
            for layer in self._layers:
                for whole in (layer.all_keys, layer.all_values):
                    assert whole is not None
                    whole[row, :, seen] = whole[last, :, seen]
            self.lengths[row], self.offsets[row] = self.lengths[last], self.offsets[last]
        self.lengths.pop()
        self.offsets.pop()
        self.window.rows = last
        self.window.begin = self.window.end - max(self.lengths, default=0)

    def kept(self, row: int, length: int) -> KVState:
        """Return keys and values of a row's first ``length`` tokens."""
        begin = self.window.end - self.lengths[row]
        seen = row, slice(None), slice(begin, begin + length)
        pairs = [(layer.all_keys, layer.all_values) for layer in self._layers]
        return [(keys[seen], values[seen]) for keys, values in pairs if keys is not None and values is not None]

    def replace(self, row: int, kept: KVState, length: int) -> None:
        """Let a row hold the first ``length`` tokens of what is kept, no more than it held, and nothing else."""
        span = row, slice(None), slice(self.window.end - length, self.window.end)
        for layer, (keys, values) in zip(self._layers, kept, strict=True):
            assert layer.all_keys is not None
            assert layer.all_values is not None
            layer.all_keys[span], layer.all_values[span] = keys[:, :length], values[:, :length]
        self.lengths[row] = length
        self.window.begin = self.window.end - max(self.lengths)

    def make_column(self) -> None:
        """Make room for one more column."""
        if self.window.end == self._columns:
            seen, width = self._seen(), self.window.end - self.window.begin
            for layer in self._layers:
                for whole in (layer.all_keys, layer.all_values):
                    assert whole is not None
                    whole[: len(self.lengths), :, :width] = whole[: len(self.lengths), :, seen].clone()
            self._shift_window()

    def advance(self) -> None:
        """Count the column that the model has just written."""
        self.window.end += 1
        self.lengths = [length + 1 for length in self.lengths]

    def _seen(self) -> slice:
        return slice(self.window.begin, self.window.end)

    def _shift_window(self) -> None:
        self.window.begin, self.window.end = 0, self.window.end - self.window.begin


def cache_of(config: PreTrainedConfig, kept: KVState) -> DynamicCache:
    """Return a cache that holds a copy of what was kept of one row, laid out the same wherever that lay."""
    cache = prompt_cache(config)
    plain = [layer for layer in cache.layers if type(layer) is DynamicLayer]
    for layer, (keys, values) in zip(plain, kept, strict=True):
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = (part[None].clone(memory_format=torch.contiguous_format) for part in (keys, values))
    return cache


def kv_state_of(cache: DynamicCache) -> KVState:
    """Return what a cache of a single row holds."""
    plain = [layer for layer in cache.layers if type(layer) is DynamicLayer]
    return [(layer.keys[0], layer.values[0]) for layer in plain if layer.keys is not None and layer.values is not None]


def _moved(whole: Tensor, seen: slice, slots: int, columns: int) -> Tensor:
    """Return room of another size with the visible columns at its beginning."""
    rows = min(slots, len(whole))
    moved = whole.new_zeros(slots, whole.shape[1], columns, whole.shape[-1])
    moved[:rows, :, : seen.stop - seen.start] = whole[:rows, :, seen]
    return moved
