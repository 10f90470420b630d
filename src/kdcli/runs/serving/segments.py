"""Kept answers of a server, in one file per stretch between two checkpoints, so that old ones can go."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from kdcli import durable
from kdcli.runs.serving.logprobs import Known
from kdcli.runs.serving.places import KeptPlaces


class Segments:
    """What a server said, newest stretch last; a run that goes on from a checkpoint needs what was said after it.

    Args:
        folder: where the files lie; made when the first answer comes, two levels below a folder that is there.
        about: what the answers follow from beside the sequence.
    """

    def __init__(self, folder: Path, about: str) -> None:
        self._folder, self._about = folder, about
        self._parts = {int(path.stem): KeptPlaces(path, about) for path in sorted(folder.glob("????????.jsonl"))}
        if not self._parts:
            self._open(0)

    def __len__(self) -> int:
        return sum(map(len, self._parts.values()))

    def find(self, ids: Sequence[int]) -> list[Known] | None:
        """Return what is known of each token of a sequence after the first, None if it was not asked for."""
        return next((known for part in self._parts.values() if (known := part.find(ids)) is not None), None)

    def add(self, found: Mapping[tuple[int, ...], Sequence[Known]]) -> None:
        """Append what was said of some sequences to the newest stretch, and flush it to disk.

        Raises:
            MachineError: the disk is full or may not be written.
        """
        durable.make_inside(self._folder.parents[1], self._folder.parent.name, self._folder.name)
        self._parts[max(self._parts)].add(found)

    def turn(self, checkpoints: int) -> None:
        """Begin a new stretch, and forget those that no checkpoint needs.

        Args:
            checkpoints: how many are kept; one stretch more is, for one that turns out to be damaged.
        """
        self._open(max(self._parts) + 1)
        for number in sorted(self._parts)[: -(checkpoints + 1)]:
            del self._parts[number]
            durable.remove_file(self._path(number))

    def _open(self, number: int) -> None:
        self._parts[number] = KeptPlaces(self._path(number), self._about)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:08d}.jsonl"
