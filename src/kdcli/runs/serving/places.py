"""What a server said of sequences while a student was trained, kept so that a resumed run hears the same."""

import base64
import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from kdcli import durable, stored
from kdcli.runs.serving.logprobs import Known

_DAMAGE = (ValueError, KeyError, TypeError, AttributeError)
"""What a damaged line raises; it counts as none."""

ASKED = "asked"
"""Where it lies in a run folder, until the run is done."""


class KeptPlaces:
    """An append-only file of log-probabilities, found again by the sequence; only places in it are held in memory.

    A line that a kill left half written is cut off when the file is opened again. At 20 tokens a place, a response
    token takes about 320 bytes.

    Args:
        path: the file; made when the first answer comes, in a folder that is there.
        about: what the answers follow from beside the sequence: model, address, tokens a place.
    """

    def __init__(self, path: Path, about: str) -> None:
        self._path, self._about = path, about
        self._places: dict[str, tuple[int, int]] = {}
        self._size = 0
        if path.is_file():
            self._scan()

    def __len__(self) -> int:
        return len(self._places)

    def find(self, ids: Sequence[int]) -> list[Known] | None:
        """Return what is known of each token of a sequence after the first, None if it was not asked for."""
        place = self._places.get(self._key(ids))
        if place is None:
            return None
        with self._path.open("rb") as file:
            file.seek(place[0])
            return _unpacked(file.read(place[1]))[1]

    def add(self, found: Mapping[tuple[int, ...], Sequence[Known]]) -> None:
        """Append what was said of some sequences, and flush it to disk once.

        Raises:
            MachineError: the disk is full or may not be written.
        """
        lines = [(self._key(ids), _packed(self._key(ids), known)) for ids, known in found.items()]
        file = durable.Lines(self._path, self._size)
        try:
            file.add(b"".join(line for _, line in lines))
        finally:
            file.close()
        for key, line in lines:
            self._places[key] = (self._size, len(line))
            self._size += len(line)

    def _key(self, ids: Sequence[int]) -> str:
        return hashlib.sha256(json.dumps([self._about, [*ids]]).encode()).hexdigest()

    def _scan(self) -> None:
        with self._path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    return
                with contextlib.suppress(*_DAMAGE):
                    self._places[_unpacked(line)[0]] = (self._size, len(line))
                self._size += len(line)


def _packed(key: str, known: Sequence[Known]) -> bytes:
    ids = np.asarray([[*place] for place in known], dtype="<i4")
    values = np.asarray([[*place.values()] for place in known], dtype="<f8")
    data = base64.b64encode(ids.tobytes() + values.tobytes()).decode()
    entry = {"key": key, "shape": [*ids.shape], "data": data}
    return (json.dumps({**entry, "check": _check(entry)}) + "\n").encode()


def _unpacked(line: bytes) -> tuple[str, list[Known]]:
    """Return key and places of a line.

    Raises:
        ValueError: it is damaged.
    """
    entry = stored.parse(line)
    if entry.pop("check") != _check(entry):
        raise ValueError("expected a line that agrees with its check")
    raw, (places, top_k) = base64.b64decode(entry["data"], validate=True), entry["shape"]
    cut = 4 * places * top_k
    ids = np.frombuffer(raw[:cut], dtype="<i4").reshape(places, top_k).tolist()
    values = np.frombuffer(raw[cut:], dtype="<f8").reshape(places, top_k).tolist()
    return str(entry["key"]), [dict(zip(*pair, strict=True)) for pair in zip(ids, values, strict=True)]


def _check(entry: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()[:8]
