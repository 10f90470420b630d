"""Cached teachers: hidden states, or top-k log-probabilities, from disk."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kdcli.config.sections import DataConfig, HardwareConfig
from kdcli.data.batching import Batch, collate
from kdcli.data.tokenize import TokenDataset
from kdcli.errors import ExperimentChangedError
from kdcli.loading.info import ModelInfo
from kdcli.losses.base import Tokens
from kdcli.losses.build import build_objective
from kdcli.losses.topk import TopKWithTail, top_k_with_tail
from kdcli.models.devices import Device
from kdcli.models.head import Head
from kdcli.models.load import LanguageModel
from kdcli.models.packing import AppliedHead, Packing, Projection, Workspace, wide
from kdcli.registry.registry import LOSSES
from kdcli.storage import atomic
from kdcli.teachers.base import Teacher
from kdcli.teachers.cache_files import HEAD, HEAT, KEY, check_parts, read_key
from kdcli.teachers.token_store import TokenStore, sequence_keys
from kdcli.text import one_line

_HEAD = "head.safetensors"
HIDDEN, IDS, LOG_PROBS = "hidden", "ids", "log_probs"


class CachedTeacher(Teacher):
    """Gives what a live teacher gave when the cache was built.

    Args:
        store: hidden states by sequence.
        head: the teacher's head.
    """

    def __init__(self, store: TokenStore, head: Head) -> None:
        self.store, self.head = store, head

    def side(self, batch: Batch, packing: Packing) -> Projection:
        """Read the hidden states of a micro-batch's valid tokens."""
        device = batch.input_ids.device
        if not packing.count:
            return Projection(self.head.weight.new_zeros((0, self.head.weight.shape[1])), self.head)
        hidden = self.store.read(sequence_keys(batch), [HIDDEN])[HIDDEN]
        return Projection(hidden.to(device, non_blocking=True), self.head)


class TopKTeacher(Teacher):
    """Gives the likeliest tokens of a teacher that was run before, and the mass of the rest.

    Args:
        store: ``ids`` and ``log_probs`` by sequence.
        top_k: tokens kept.
    """

    def __init__(self, store: TokenStore, top_k: int) -> None:
        self.store, self.top_k = store, top_k

    def side(self, batch: Batch, packing: Packing) -> TopKWithTail:
        """Read what is known of a micro-batch's valid tokens."""
        if not packing.count:
            return TopKWithTail(torch.zeros((0, self.top_k), dtype=torch.int64), torch.zeros((0, self.top_k + 1)))
        found = self.store.read(sequence_keys(batch), [IDS, LOG_PROBS])
        return TopKWithTail(found[IDS].long(), found[LOG_PROBS]).to(batch.input_ids.device)


def save_head(head: Head, target: Path) -> None:
    """Write a head's tensors into a folder."""
    tensors = {"weight": head.weight} if head.bias is None else {"weight": head.weight, "bias": head.bias}
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, target / _HEAD)


def load_head(folder: Path, device: torch.device, *, scale: float, softcap: float | None) -> Head:
    """Read a head that :func:`save_head` wrote, onto a device."""
    tensors = load_file(folder / _HEAD, device=str(device))
    return Head(tensors["weight"], tensors.get("bias"), scale=scale, softcap=softcap)


# What a teacher cache was made of: equal keys give equal hidden states, others are refused by field.


SCHEMA = 1
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_CHOSEN = ("kind", "dtype", "top_k")
"""Fields that a cache may choose for itself; whoever reads it takes note of them."""
LIBRARY = "transformers"
"""The library that computes a teacher's hidden states; from one version to the next some families' bits move."""


def cache_key(
    teacher: ModelInfo,
    data: DataConfig,
    hardware: HardwareConfig,
    device: Device,
    *,
    kind: str = "exact",
    dtype: str = "auto",
    top_k: int | None = None,
) -> dict[str, Any]:
    """Return everything that the numbers in a cache follow from, rows aside.

    Args:
        teacher: weights and tokenizer.
        data: template and length; the rows themselves are addressed by their token ids.
        hardware: precision of matrix products.
        device: where it is computed.
        kind: "exact" or "compact".
        dtype: of the numbers on disk, as on the command line.
        top_k: tokens kept of each distribution; None for an exact cache.
    """
    compute = str(device.compute).removeprefix("torch.")
    served = teacher.server is not None
    return {
        "schema": SCHEMA,
        "teacher": teacher.digest,
        "tokenizer": teacher.tokenizer_digest,
        "template": data.template,
        "max_length": data.max_length,
        "precision": "the server's" if served else compute,
        "matmul_precision": "the server's" if served else hardware.matmul_precision,
        "device": "the server's" if served else device.device.type,
        LIBRARY: "the server's" if served else version(LIBRARY),
        "kind": kind,
        "dtype": DTYPES.get(dtype, compute),
        "top_k": top_k,
    }


def write_key(
    folder: Path, key: dict[str, Any], head: dict[str, Any], made_with: Mapping[str, str] | None = None
) -> None:
    """Write what a cache is.

    Args:
        folder: the cache.
        key: what it is made of.
        head: scale and soft cap of the teacher's head; empty without one.
        made_with: what computed it besides, for the record.
    """
    record = {"kind": "teacher cache", "key": key, "head": head, "made_with": {**(made_with or {})}}
    record |= {"digest": atomic.digest_record(record)}
    atomic.write_file(folder / KEY, json.dumps(record, indent=1) + "\n")


def check_key(found: dict[str, Any], wanted: dict[str, Any], folder: Path, *, free: tuple[str, ...] = _CHOSEN) -> None:
    """Refuse a cache that was made of something else.

    Args:
        found: key of the cache; an older one does not say which library made it, and is taken as it is.
        wanted: key of the work at hand.
        folder: where the cache is.
        free: fields that need not be equal.

    Raises:
        ExperimentChangedError: names the first field that differs, and both values.
    """
    for field in [name for name in wanted if name not in free]:
        if found.get(field, wanted[field] if field == LIBRARY else None) != wanted[field]:
            ours, theirs = (one_line(str(value), 40) for value in (wanted[field], found.get(field)))
            fix = "build another with kd cache, or leave the teacher cache out"
            raise ExperimentChangedError(
                "CACHE-03",
                f"the cache was made with {field} {theirs}, here it is {ours}",
                where=str(folder),
                fix=f"install {LIBRARY}=={theirs}, or {fix}" if field == LIBRARY else fix,
            )


@dataclass(frozen=True)
class TeacherView:
    """What a student sees of its teacher; by default the whole of it, with the teacher's own numbers.

    Args:
        dtype: to which hidden states were rounded; empty where nothing was.
        top_k: tokens known at each place, the rest in one bin; None for all.
        live: whether a server is asked for them while training.

    >>> str(TeacherView()), str(TeacherView(top_k=8)), str(TeacherView(top_k=8, live=True))
    ('whole', 'top 8 and the rest in one bin', 'top 8 and the rest in one bin, asked while training')
    """

    dtype: str = ""
    top_k: int | None = None
    live: bool = False

    @classmethod
    def of_cache(cls, key: Mapping[str, Any]) -> "TeacherView":
        """Return what is seen through a cache.

        >>> str(TeacherView.of_cache({"kind": "exact", "dtype": "bfloat16", "precision": "float32", "top_k": None}))
        'exact in bfloat16'
        """
        if key["kind"] == "compact":
            return cls(top_k=key["top_k"])
        return cls() if key["dtype"] in ("float32", key["precision"]) else cls(key["dtype"])

    @property
    def is_whole(self) -> bool:
        """Whether nothing is lost: the numbers are those of the teacher itself."""
        return not self.dtype and self.top_k is None

    def __str__(self) -> str:
        """Return the sentence under which runs record it."""
        if self.top_k is not None:
            return f"top {self.top_k} and the rest in one bin{', asked while training' if self.live else ''}"
        return f"exact in {self.dtype}" if self.dtype else "whole"


# Makes the entries of a compact cache, and measures what they lose, objective by objective.


_SAMPLE = 4096


class Summary:
    """Sums up distributions and keeps count of what that loses.

    The loss is measured against a student twice as hot as the teacher, on the first tokens seen: a
    student's own distance is not known before it is trained.

    Args:
        key: the cache's; ``top_k`` counts.
        teacher: whose head reads the hidden states.
        device: where to compute.
        tried: tokens that were measured before.
    """

    def __init__(self, key: dict[str, Any], teacher: LanguageModel, device: Device, tried: int = 0) -> None:
        self.top_k = int(key["top_k"])
        self.vocab, self.device, self.workspace = teacher.vocab, device, Workspace()
        self.tried, self._taken = tried, tried
        self._sums: dict[str, list[float]] = {}

    def of(self, side: Projection) -> dict[str, Tensor]:
        """Return the entries of some tokens: ``ids [n, k]`` and ``log_probs [n, k + 1]``."""
        head = AppliedHead("teacher", side, self.vocab, self.device.compute, self.workspace)
        size = self.workspace.chunk(self.vocab, self.device.device)
        ids, values = [], []
        for start in range(0, len(side.hidden), size):
            logits = wide(head.logits(slice(start, min(start + size, len(side.hidden)))))
            view = top_k_with_tail(logits, self.top_k)
            ids.append(view.ids.int())
            values.append(view.log_probs)
            if self.tried < _SAMPLE:
                self._measure(logits[: _SAMPLE - self.tried])
        return {IDS: torch.cat(ids), LOG_PROBS: torch.cat(values)}

    def take(self) -> dict[str, Any]:
        """Return what was measured since this was asked last: tokens, and the sums of each divergence."""
        taken = {"tokens": self.tried - self._taken, "sums": self._sums}
        self._sums, self._taken = {}, self.tried
        return taken

    def _measure(self, logits: Tensor) -> None:
        labels = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
        view = top_k_with_tail(logits, self.top_k)
        for name in LOSSES.names():
            loss = build_objective(name)
            if loss.between_bins and not loss.needs().full_distribution:
                whole = loss.token_loss(Tokens(labels, logits / HEAT, logits)).double().sum().item()
                bins = loss.token_loss(Tokens(labels, logits / HEAT, None, coarse=view)).double().sum().item()
                before = self._sums.setdefault(name, [0.0, 0.0])
                self._sums[name] = [before[0] + whole, before[1] + bins]
        self.tried += len(logits)
        assert all(math.isfinite(value) for pair in self._sums.values() for value in pair), "bins of finite logits"


def tried_of(store: TokenStore) -> int:
    """Return the tokens that a cache's shards were measured on."""
    return sum(one["lost"]["tokens"] for one in store.manifests() if "lost" in one)


_SIZE = {"float32": 4, "bfloat16": 2, "float16": 2}

Remembered = CachedTeacher | TopKTeacher


@dataclass(frozen=True)
class CacheRecord:
    """What a cache holds.

    Args:
        folder: where it is.
        holds: "exact" or "compact".
        sequences: sequences in it.
        added: those that this call added.
        teacher_tokens: tokens that the teacher has read for what is in it, over all calls.
        bytes: size on disk.
        seconds: what this call took.
    """

    folder: Path
    holds: str
    sequences: int
    added: int
    teacher_tokens: int
    bytes: int
    seconds: float


@dataclass(frozen=True)
class CachePlan:
    """What a cache would hold.

    Args:
        teacher: folder, hub id or address.
        device: where it would be read.
        holds: "exact" or "compact", with its bins.
        sequences: sequences of training and held-out rows.
        response_tokens: tokens whose distribution it would hold.
        teacher_tokens: tokens that the teacher would read.
        bytes: size on disk.
    """

    teacher: str
    device: str
    holds: str
    sequences: int
    response_tokens: int
    teacher_tokens: int
    bytes: int


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
    check_parts(folder, found)
    store = TokenStore(folder)
    if found["key"]["kind"] == "compact":
        return TopKTeacher(store, found["key"]["top_k"])
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
