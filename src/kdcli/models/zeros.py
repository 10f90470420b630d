"""Zeros among the weights of a decoder's linear layers, and what a file of weights takes when it is compressed."""

import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from kdcli.models.head import trunk_of
from kdcli.models.internals import Conv1D

_LEVEL = 6
_PIECE = 2**20


def linear_weights(model: PreTrainedModel) -> Iterator[nn.Parameter]:
    """Yield the weights of the linear layers of a decoder; embeddings, norms and head are none.

    Args:
        model: a causal LM.
    """
    for module in trunk_of(model).modules():
        if isinstance(module, nn.Linear | Conv1D):
            yield module.get_parameter("weight")


def zero_share(model: PreTrainedModel) -> float:
    """Return the share of the weights of a decoder's linear layers that are 0.

    Args:
        model: a causal LM.
    """
    weights = list(linear_weights(model))
    zeros = sum(int((one == 0).sum()) for one in weights)
    return zeros / max(sum(one.numel() for one in weights), 1)


def compressed_bytes(files: Iterable[Path]) -> int:
    """Return the bytes of files after zlib, level 6, each on its own.

    Args:
        files: what is read; nothing is written.

    Raises:
        OSError: one cannot be read.
    """
    total = 0
    for path in files:
        packer = zlib.compressobj(_LEVEL)
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                total += len(packer.compress(piece))
        total += len(packer.flush())
    return total
