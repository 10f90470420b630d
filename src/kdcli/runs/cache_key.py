"""What a teacher cache was made of: equal keys give equal hidden states, others are refused by field."""

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from kdcli import durable, stored
from kdcli.config import DataConfig, HardwareConfig
from kdcli.engine.devices import Device
from kdcli.errors import ExperimentChangedError, InputError, IntegrityError
from kdcli.runs.model_facts import ModelFacts
from kdcli.text import one_line

SCHEMA = 1
KEY = "cache.json"
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_CHOSEN = ("kind", "dtype", "top_k")
"""Fields that a cache may choose for itself; whoever reads it takes note of them."""
LIBRARY = "transformers"
"""The library that computes a teacher's hidden states; from one version to the next some families' bits move."""


class _Key(BaseModel):
    """What is read of a cache's key."""

    kind: Literal["exact", "compact"]
    dtype: str
    precision: str
    top_k: int | None


class _Head(BaseModel):
    """How the teacher's head reads hidden states; empty for a server's cache."""

    scale: float = 1.0
    softcap: float | None = None


class _Cache(BaseModel):
    """The shape of ``cache.json``."""

    key: _Key
    head: _Head
    digest: str = ""
    teacher_tokens: int = 0


def cache_key(
    teacher: ModelFacts,
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


def read_key(folder: Path) -> dict[str, Any]:
    """Return what a cache says of itself; older ones carry no digest, and count what their teacher has read.

    Raises:
        InputError: there is no cache.
        IntegrityError: its first file cannot be read.
    """
    path = folder / KEY
    if not path.is_file():
        raise InputError("CACHE-01", "no teacher cache", where=str(folder), fix="make one with kd cache")
    fix = "make it again with the same kd cache line"
    found = stored.read_record(path, dict[str, Any], fix=fix, code="CACHE-02")
    stored.fit(found, _Cache, path, fix=fix, code="CACHE-02")
    old = found.keys() == {"kind", "key", "head", "teacher_tokens"}
    if not old and found.get("digest") != durable.digest_record(found):
        raise IntegrityError("CACHE-02", "digest differs from the one it carries", where=str(path), fix=fix)
    return {"teacher_tokens": 0, **found}


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
    record |= {"digest": durable.digest_record(record)}
    durable.write_file(folder / KEY, json.dumps(record, indent=1) + "\n")


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


def seen_as(key: dict[str, Any]) -> str:
    """Say what a student sees of the teacher through a cache: the whole of it, or less.

    >>> seen_as({"kind": "exact", "dtype": "bfloat16", "precision": "float32", "top_k": None})
    'exact in bfloat16'
    """
    if key["kind"] == "compact":
        return f"top {key['top_k']} and the rest in one bin"
    return WHOLE if key["dtype"] in ("float32", key["precision"]) else f"exact in {key['dtype']}"


WHOLE = "whole"
"""Nothing is lost: the numbers are those of the teacher itself."""
