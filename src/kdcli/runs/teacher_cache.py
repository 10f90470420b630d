"""Opens a teacher cache, and says what it holds and how large one will be."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kdcli import durable
from kdcli.data.collate import collate
from kdcli.data.examples import TokenDataset
from kdcli.engine.cached_teacher import CachedTeacher, CompactTeacher, load_head
from kdcli.engine.token_store import TokenStore, sequence_keys
from kdcli.runs.cache_key import check_key, read_key

HEAD = "head"
_SIZE = {"float32": 4, "bfloat16": 2, "float16": 2}

Remembered = CachedTeacher | CompactTeacher


@dataclass(frozen=True)
class CacheRecord:
    """What a cache holds.

    Args:
        folder: where it is.
        kind: "exact" or "compact".
        sequences: sequences in it.
        added: those that this call added.
        teacher_tokens: tokens that the teacher has read for it, over all calls.
        bytes: size on disk.
        seconds: what this call took.
    """

    folder: Path
    kind: str
    sequences: int
    added: int
    teacher_tokens: int
    bytes: int
    seconds: float


def estimated_bytes(key: dict[str, Any], width: int, rows: int, targets: int) -> int:
    """Return how large a cache will be: hidden states of the response tokens and the head once, or the bins.

    Args:
        key: the cache's.
        width: numbers in a hidden state.
        rows: rows of the teacher's head.
        targets: response tokens.

    >>> estimated_bytes({"kind": "compact", "top_k": 64}, 768, 50257, targets=1000)
    516000
    """
    if key["kind"] == "compact":
        return targets * (8 * key["top_k"] + 4)
    return targets * width * _SIZE[key["dtype"]] + rows * width * 4


def open_cache(folder: Path, key: dict[str, Any], device: torch.device) -> Remembered:
    """Return the teacher that a cache stands for, after checking every digest.

    Raises:
        InputError: there is no cache.
        ExperimentChangedError: it was made of something else.
        IntegrityError: a file is not what its manifest says.
    """
    found = read_key(folder)
    check_key(found["key"], key, folder)
    store = TokenStore(folder)
    for error in store.verify():
        raise error
    if found["key"]["kind"] == "compact":
        return CompactTeacher(store, found["key"]["top_k"])
    durable.verify_folder(folder / HEAD)
    return CachedTeacher(store, load_head(folder / HEAD, device, **found["head"]))


def missing_rows(teacher: Remembered, dataset: TokenDataset) -> int:
    """Return how many different sequences of a data set a cache lacks."""
    return len(missing_from(teacher.store, [dataset]))


def missing_from(store: TokenStore, datasets: Sequence[TokenDataset]) -> TokenDataset:
    """Return the sequences that a cache lacks, each once."""
    found = {}
    for dataset in datasets:
        for index, example in enumerate(dataset.examples):
            for key in sequence_keys(collate(dataset.examples, [index], 0)):
                if key not in store:
                    found.setdefault(key, example)
    return TokenDataset(tuple(found.values()))
