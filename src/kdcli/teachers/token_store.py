"""Content-addressed storage of per-token tensors.

::

    shard-00000/tokens.safetensors   name -> [tokens, ...], one sequence after another
    shard-00000/index.json           sequence key -> [first row, rows]
    shard-00000/manifest.json        digests of both, and what the shard belongs to

A shard appears whole or not at all, so a build that was killed goes on with what is missing.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from kdcli.data.batching import IGNORED, Batch
from kdcli.errors import IntegrityError
from kdcli.storage import atomic
from kdcli.teachers import cache_files
from kdcli.teachers.cache_files import INDEX, TOKENS, check_shard, read_index


def sequence_keys(batch: Batch) -> list[str]:
    """Return a name for each sequence of a micro-batch that holds a valid token, in their order.

    It is the sha256 over the ids that are read, over which of them count, and over the images' bytes if there are
    any: a row's number, the other rows and its padding do not enter.
    """
    ids, labels = batch.input_ids.cpu(), batch.labels.cpu()
    keys = []
    for row, length in enumerate(batch.attention_mask.sum(dim=1).tolist()):
        valid = labels[row, :length] != IGNORED
        if valid.any():
            content = ids[row, :length].numpy().astype("<i8").tobytes() + b"|" + valid.numpy().tobytes()
            images = batch.extra[row] if batch.extra else None
            content += b"" if images is None else b"|" + images.digest.encode()
            keys.append(hashlib.sha256(content).hexdigest())
    return keys


class TokenStore:
    """Reads and extends the shards of one folder.

    Args:
        folder: where the shards are; it exists.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._scan()

    def __contains__(self, key: str) -> bool:
        return key in self._where

    def __len__(self) -> int:
        return len(self._where)

    def shards(self) -> list[Path]:
        """Return the shards there are, in order."""
        return cache_files.shards(self.folder)

    def verify(self) -> Iterator[IntegrityError]:
        """Yield what is wrong with each shard that is not what its manifest says."""
        yield from cache_files.damaged_shards(self.folder)

    def drop_damaged(self, belongs: Callable[[dict[str, Any]], bool] = lambda manifest: True) -> list[str]:
        """Remove the shards that are not what their manifests say, and those of something else; return their names.

        Args:
            belongs: whether a shard of such a manifest is one of ours; by default any is.
        """
        damaged = []
        for shard in self.shards():
            try:
                ours = belongs(check_shard(shard))
            except IntegrityError:
                ours = False
            if not ours:
                atomic.remove_folder(shard)
                damaged.append(shard.name)
        self._scan()
        return damaged

    def manifests(self) -> list[dict[str, Any]]:
        """Return what the manifest of each shard says, in order; the digests of its files are not checked.

        Raises:
            IntegrityError: a manifest is damaged.
        """
        return cache_files.manifests(self.folder)

    def add(self, entries: Sequence[tuple[str, dict[str, Tensor]]], about: Mapping[str, Any] | None = None) -> None:
        """Write a shard of sequences.

        Args:
            entries: of each sequence its key and its tensors, of as many rows as it has tokens.
            about: what the shard's manifest says besides.
        """
        taken = [int(path.name.removeprefix("shard-")) for path in self.shards()]
        final = self.folder / f"shard-{max(taken, default=-1) + 1:05d}"
        index, start = {}, 0
        for key, tensors in entries:
            rows = len(next(iter(tensors.values())))
            index[key] = [start, rows]
            start += rows
        whole = {
            name: torch.cat([tensors[name] for _, tensors in entries]).cpu().contiguous() for name in entries[0][1]
        }

        def fill(target: Path) -> None:
            save_file(whole, target / TOKENS)
            (target / INDEX).write_text(json.dumps(index), encoding="utf-8")

        atomic.commit_folder(final, fill, {**(about or {}), "kind": "shard"})
        self._learn(final)

    def read(self, keys: Sequence[str], names: Sequence[str]) -> dict[str, Tensor]:
        """Return the tensors of some sequences, one after another; only their rows are read from disk.

        Raises:
            IntegrityError: a sequence is not here.
        """
        pieces: dict[str, list[Tensor]] = {name: [] for name in names}
        for key in keys:
            if key not in self._where:
                raise IntegrityError(
                    "CACHE-05", "a training sequence is not in the teacher cache", where=str(self.folder),
                    fix="build it for these rows with kd cache, or leave the teacher cache out",
                )  # fmt: skip
            shard, start, rows = self._where[key]
            file = self._file(shard)
            for name in names:
                pieces[name].append(file.get_slice(name)[start : start + rows])
        return {name: torch.cat(parts) for name, parts in pieces.items()}

    def _scan(self) -> None:
        self._where: dict[str, tuple[Path, int, int]] = {}
        self._open: dict[Path, Any] = {}
        for shard in self.shards():
            self._learn(shard)

    def _file(self, shard: Path) -> Any:
        if shard not in self._open:
            self._open[shard] = safe_open(shard / TOKENS, framework="pt")
        return self._open[shard]

    def _learn(self, shard: Path) -> None:
        try:
            index = read_index(shard)
        except IntegrityError:
            return  # a damaged shard knows no sequence; verify() says so
        self._where.update({key: (shard, start, rows) for key, (start, rows) in index.items()})
