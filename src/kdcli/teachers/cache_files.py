"""The files of a teacher cache: what they say, and whether they are as they were written; reads no tensor."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from kdcli.errors import InputError, IntegrityError
from kdcli.storage import atomic, stored

KEY = "cache.json"
ERRORS = "errors.json"
HEAD = "head"
TOKENS, INDEX = "tokens.safetensors", "index.json"
HEAT = 2.0
"""Temperature over the teacher's own of the student that a compact cache's losses are measured against."""
_AGAIN = "make it again with the same kd cache line"


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


def read_key(folder: Path) -> dict[str, Any]:
    """Return what a cache says of itself; older ones carry no digest, and count what their teacher has read.

    Raises:
        InputError: there is no cache.
        IntegrityError: its first file cannot be read.
    """
    path = folder / KEY
    if not path.is_file():
        raise InputError("CACHE-01", "no teacher cache", where=str(folder), fix="make one with kd cache")
    found = stored.read_record(path, dict[str, Any], fix=_AGAIN, code="CACHE-02")
    stored.fit(found, _Cache, path, fix=_AGAIN, code="CACHE-02")
    old = found.keys() == {"kind", "key", "head", "teacher_tokens"}
    if not old and found.get("digest") != atomic.digest_record(found):
        raise IntegrityError("CACHE-02", "digest differs from the one it carries", where=str(path), fix=_AGAIN)
    return {"teacher_tokens": 0, **found}


def shards(folder: Path) -> list[Path]:
    """Return the shards there are, in order."""
    return sorted(path for path in folder.glob("shard-*") if path.is_dir())


def manifests(folder: Path) -> list[dict[str, Any]]:
    """Return what the manifest of each shard says, in order; the digests of its files are not checked.

    Raises:
        IntegrityError: a manifest is damaged.
    """
    return [atomic.read_manifest(shard) for shard in shards(folder)]


def read_index(shard: Path) -> dict[str, tuple[int, int]]:
    """Return where a shard holds each sequence: key -> first row and rows.

    Raises:
        IntegrityError: the index is damaged.
    """
    return stored.read_record(
        shard / INDEX, dict[str, tuple[int, int]], fix="kd cache with the same settings builds the shard again"
    )


def check_shard(shard: Path) -> dict[str, Any]:
    """Return a shard's manifest.

    Raises:
        IntegrityError: the shard is not what its manifest says, or its index is none.
    """
    manifest = atomic.verify_folder(shard)
    read_index(shard)
    return manifest


def damaged_shards(folder: Path) -> Iterator[IntegrityError]:
    """Yield what is wrong with each shard that is not what its manifest says."""
    for shard in shards(folder):
        try:
            check_shard(shard)
        except IntegrityError as error:
            yield error


def check_parts(folder: Path, found: Mapping[str, Any]) -> None:
    """Check every digest, and that shards and head are parts of this cache.

    Args:
        folder: the cache.
        found: what its ``cache.json`` says.

    Raises:
        IntegrityError: names the first file that is not what it should be.
    """
    of = atomic.digest_record(found["key"])
    for error in damaged_shards(folder):
        raise error
    parts = list(zip(shards(folder), manifests(folder), strict=True))
    if found["key"]["kind"] == "exact":
        parts.append((folder / HEAD, atomic.verify_folder(folder / HEAD)))
    for part, manifest in parts:
        if manifest.get("of", of) != of:
            raise IntegrityError("CACHE-02", "is part of another cache", where=str(part), fix=_AGAIN)


def errors_text(key: Mapping[str, Any], parts: Sequence[Mapping[str, Any]]) -> str | None:
    """Return what ``errors.json`` says: each divergence's mean on whole distributions and on bins, and the share lost.

    Args:
        key: the cache's.
        parts: manifests of its shards, which hold what was measured; None is returned where none does.
    """
    lost_of = [one["lost"] for one in parts if one.get("lost", {}).get("tokens")]
    if not lost_of:
        return None
    tried = sum(part["tokens"] for part in lost_of)
    found: dict[str, Any] = {}
    for name in lost_of[0]["sums"]:
        whole, bins = (math.fsum(part["sums"][name][at] for part in lost_of) for at in (0, 1))
        lost = 1 - bins / whole if whole else 0.0
        found[name] = {"whole": whole / tried, "bins": bins / tried, "lost": lost}
    about = {"top_k": key["top_k"], "tokens": tried, "student": f"the teacher at temperature {HEAT:g}"}
    return json.dumps({**about, **found}, indent=1, sort_keys=True) + "\n"


def check_cache(folder: Path) -> int:
    """Check everything in a cache; return how many files that is.

    Raises:
        IntegrityError: names the first file that is not what it should be.
    """
    if not (folder / KEY).is_file():
        raise IntegrityError("CACHE-02", "is missing", where=str(folder / KEY), fix=_AGAIN)
    found = read_key(folder)
    check_parts(folder, found)
    text = errors_text(found["key"], manifests(folder))
    if text is not None and not ((folder / ERRORS).is_file() and (folder / ERRORS).read_bytes() == text.encode()):
        raise IntegrityError("CACHE-02", "is not what the shards say", where=str(folder / ERRORS), fix=_AGAIN)
    return sum(path.is_file() for path in folder.rglob("*") if not path.name.startswith("."))


def is_cache(folder: Path) -> bool:
    """Whether a folder is a teacher cache, even one whose ``cache.json`` is gone."""
    return (folder / KEY).is_file() or any(path.is_dir() for path in folder.glob("shard-?????"))
