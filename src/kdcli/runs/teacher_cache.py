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
from kdcli.errors import IntegrityError
from kdcli.runs.cache_key import KEY, check_key, read_key
from kdcli.runs.cache_summary import ERRORS, errors_text

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
        teacher_tokens: tokens that the teacher has read for what is in it, over all calls.
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
    store = checked_store(folder, found)
    if found["key"]["kind"] == "compact":
        return CompactTeacher(store, found["key"]["top_k"])
    return CachedTeacher(store, load_head(folder / HEAD, device, **found["head"]))


def checked_store(folder: Path, found: dict[str, Any]) -> TokenStore:
    """Return a cache's shards, after checking every digest, and that shards and head are parts of this cache.

    Args:
        folder: the cache.
        found: what its ``cache.json`` says.

    Raises:
        IntegrityError: names the first file that is not what it should be.
    """
    store, of = TokenStore(folder), durable.digest_record(found["key"])
    for error in store.verify():
        raise error
    parts = list(zip(store.shards(), store.manifests(), strict=True))
    if found["key"]["kind"] == "exact":
        parts.append((folder / HEAD, durable.verify_folder(folder / HEAD)))
    for part, manifest in parts:
        if manifest.get("of", of) != of:
            fix = "make it again with the same kd cache line"
            raise IntegrityError("CACHE-02", "is part of another cache", where=str(part), fix=fix)
    return store


def check_cache(folder: Path) -> int:
    """Check everything in a cache; return how many files that is.

    Raises:
        IntegrityError: names the first file that is not what it should be.
    """
    if not (folder / KEY).is_file():
        fix = "make it again with the same kd cache line"
        raise IntegrityError("CACHE-02", "is missing", where=str(folder / KEY), fix=fix)
    found = read_key(folder)
    store = checked_store(folder, found)
    text = errors_text(found["key"], store)
    if text is not None and not ((folder / ERRORS).is_file() and (folder / ERRORS).read_bytes() == text.encode()):
        fix = "make it again with the same kd cache line"
        raise IntegrityError("CACHE-02", "is not what the shards say", where=str(folder / ERRORS), fix=fix)
    return sum(path.is_file() for path in folder.rglob("*") if not path.name.startswith("."))


def is_cache(folder: Path) -> bool:
    """Whether a folder is a teacher cache, even one whose ``cache.json`` is gone."""
    return (folder / KEY).is_file() or any(path.is_dir() for path in folder.glob("shard-?????"))


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
