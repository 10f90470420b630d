"""The layout and state of a run folder, and whether a run may be resumed in it.

::

    config.yaml      every setting, can be fed back by -c
    manifest.json    identity, digests, versions, command line, its own digest
    status.json      state, what the run cost, digests of the small files and its own
    metrics.jsonl    one line per step; timing.jsonl: wall-clock times
    checkpoint-*/    to resume from; dropped when the run is done, unless asked for
    model/           the trained student
    best/            the best one seen while training, where that was asked for
    eval/<name>/     results.json, samples.parquet
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, Field, FiniteFloat

from kdcli.errors import ExperimentChangedError, InputError, IntegrityError, UsageError
from kdcli.storage import atomic, stored

_ONCE_IN_IDENTITIES = {"gpus", "world_size"}


LATER_IN_IDENTITIES = {"end_tokens.student", "end_tokens.teacher"}
"""What identities of older runs do not tell; there it is not compared, and it names no folder."""


def check_identity(saved: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    """Refuse to continue a run as another experiment; the number of processes is no part of it.

    Raises:
        ExperimentChangedError: names the first key that differs, its old and its new value.
    """
    for key in sorted({*saved, *now} - _ONCE_IN_IDENTITIES):
        if key in LATER_IN_IDENTITIES and key not in saved:
            continue
        if saved.get(key) != now.get(key):
            raise ExperimentChangedError(
                "RUN-08",
                f"{key} was {saved.get(key)!r} and is now {now.get(key)!r}",
                where=str(folder),
                fix="repeat the settings of config.yaml there, or choose another -o",
            )


SCHEMA = 1
CONFIG, MANIFEST, STATUS, MODEL, EVAL = "config.yaml", "manifest.json", "status.json", "model", "eval"
ADAPTER, BEST = "adapter", "best"
MADE = "made"
REFERENCES = "reference"
"""In a study's folder: the evaluations of models that it does not train."""

NOT_CONTENT = (".lock", "error.log")
SEALED = (CONFIG, MANIFEST, "metrics.jsonl", "timing.jsonl")
_RESTORE = "restore the file, or start in a new folder"


_Count: TypeAlias = Annotated[int, Field(ge=0, lt=2**63)]
"""A number that tables can hold."""


class _Identity(BaseModel):
    """What every run's identity holds."""

    loss: str
    steps: _Count
    seed: _Count = Field(alias="train.seed")
    batch_size: int = Field(default=1, alias="train.batch_size")


class _Environment(BaseModel):
    """What is read of the surroundings that a run was made in."""

    libraries: dict[str, str] = {}
    argv: list[str] = []


class _Manifest(BaseModel):
    """The shape of ``manifest.json``."""

    identity: _Identity
    environment: _Environment


class _Wrote(BaseModel):
    """What a run let its teacher write before the first step."""

    tokens: _Count = 0
    seconds: FiniteFloat = 0.0
    effort: dict[str, _Count] = {}


class _Status(BaseModel):
    """The shape of ``status.json``; what a finished training cost is required where it is read."""

    state: str
    started: str = ""
    updated: str = ""
    steps: _Count = 0
    total: _Count = 0
    rows: _Count | None = None
    asks_teacher: bool | None = None
    seconds: FiniteFloat = 0.0
    cpu_seconds: FiniteFloat = 0.0
    student_tokens: _Count | None = None
    teacher_tokens: _Count | None = None
    generated_tokens: _Count = 0
    made_tokens: _Count = 0
    effort: dict[str, _Count] | None = None
    made_effort: dict[str, _Count] | None = None
    tokens: _Count = 0
    peak_bytes: _Count = 0
    generation_seconds: FiniteFloat = 0.0
    zeros: FiniteFloat | None = None
    compressed_bytes: _Count | None = None
    wrote: _Wrote = _Wrote()
    files: dict[str, str] = {}
    digest: str | None = None


@dataclass(frozen=True)
class RunFolder:
    """Reads and writes the small files of a run.

    Args:
        path: the folder; it need not exist.
    """

    path: Path

    @property
    def model(self) -> Path:
        """Where the trained student is."""
        return self.path / MODEL

    @property
    def best(self) -> Path:
        """Where the best student seen while training is."""
        return self.path / BEST

    @property
    def is_run(self) -> bool:
        """Whether this is one of our run folders."""
        return (self.path / MANIFEST).is_file() and self._read(MANIFEST).get("kind") == "run"

    @property
    def is_done(self) -> bool:
        """Whether training ended and the student was saved."""
        return self.status().get("state") == "done" and self.model.is_dir()

    @property
    def holds_work(self) -> bool:
        """Whether anything was saved that another experiment must not replace."""
        return self.model.is_dir() or any(self.path.glob("checkpoint-*"))

    def manifest(self) -> dict[str, Any]:
        """Return the manifest.

        Raises:
            InputError: not a run folder.
            ExperimentChangedError: written by a newer version.
        """
        if not self.is_run:
            raise InputError("RUN-03", "not a kd run", where=str(self.path), fix="give a folder that kd distill wrote")
        manifest = self._read(MANIFEST)
        if manifest.get("schema") != SCHEMA:
            made = manifest.get("environment")
            raise ExperimentChangedError(
                "RUN-02",
                f"written by kd {made.get('kd') if isinstance(made, dict) else None} "
                f"(schema {manifest.get('schema')}); this one reads schema {SCHEMA}",
                where=str(self.path),
                fix="use that version, or choose another -o",
            )
        self._check_digest(MANIFEST, manifest)
        stored.fit(manifest, _Manifest, self.path / MANIFEST, fix=_RESTORE)
        return manifest

    def status(self) -> dict[str, Any]:
        """Return the status, empty if there is none yet."""
        if not (self.path / STATUS).is_file():
            return {}
        status = self._read(STATUS)
        self._check_digest(STATUS, status)
        stored.fit(status, _Status, self.path / STATUS, fix=_RESTORE)
        return status

    def check(self, identity: dict[str, Any], *, resume: bool) -> bool:
        """Say whether this folder holds a run that may be continued as this experiment.

        A run that stopped before its first checkpoint may be overwritten: any experiment may begin in its place.

        Returns:
            False for a folder that is empty or absent, or holds another run that saved nothing.

        Raises:
            InputError: it holds something else.
            UsageError: it holds a run, and ``resume`` is off.
            ExperimentChangedError: it holds another experiment; names the key, old and new.
            IntegrityError: a file that was written before is not what it was.
        """
        if not self._content():
            return False
        saved = self.manifest()["identity"]
        if not resume:
            status = self.status()
            where = f"step {status.get('steps', 0)} of {saved.get('steps')}"
            raise UsageError(
                "CLI-12",
                f"the folder holds a run ({where})",
                where=str(self.path),
                fix="add --resume auto to go on, or choose another -o",
            )
        if not self.holds_work and saved != identity:
            return False
        check_identity(saved, identity, self.path)
        self.check_files((CONFIG, MANIFEST))
        return True

    def check_files(self, names: Iterable[str] = SEALED) -> None:
        """Compare small files with the digests in the status; those that are gone or have none are passed over.

        Raises:
            IntegrityError: one differs; names it.
        """
        known = self.status().get("files", {})
        for name in names:
            atomic.refuse_link(self.path / name)
            if name in known and self._has(name) and atomic.digest_file(self.path / name) != known[name]:
                fix = "restore the file; settings changed on purpose belong in a copy elsewhere, given with -c"
                where = str(self.path / name)
                raise IntegrityError("RUN-01", "digest differs from the recorded one", where=where, fix=fix)

    def begin(self, config: str, identity: dict[str, Any], environment: dict[str, Any]) -> None:
        """Write config and, unless work is saved under it, the manifest."""
        if not self.holds_work:
            atomic.remove_file(self.path / STATUS)
        if not self.holds_work or not (self.path / MANIFEST).is_file():
            manifest = {"kind": "run", "schema": SCHEMA, "identity": identity, "environment": environment}
            atomic.write_file(self.path / MANIFEST, _json({**manifest, "digest": _digest(manifest)}))
        known = self.status().get("files", {})
        if known and known.get(CONFIG) != hashlib.sha256(config.encode()).hexdigest():
            self._write_status(self.status() | {"files": {}})
        atomic.write_file(self.path / CONFIG, config)

    def set_status(self, state: str, **values: Any) -> None:
        """Record the state and further values, keeping the others."""
        now = datetime.now(UTC).isoformat("T", "seconds")
        before = self.status()
        status = {"started": now, **before, **values, "state": state, "updated": now}
        known = {**before.get("files", {}), **values.get("files", {})}
        names = SEALED if state == "done" else (CONFIG, MANIFEST)
        status["files"] = {
            name: known.get(name) or atomic.digest_file(self.path / name) for name in names if self._has(name)
        }
        self._write_status(status)

    def _write_status(self, status: dict[str, Any]) -> None:
        atomic.write_file(self.path / STATUS, _json({**status, "digest": _digest(status)}))

    def _check_digest(self, name: str, found: dict[str, Any]) -> None:
        """Compare a record with the digest it carries; older ones carry none."""
        if found.get("digest") not in (None, _digest(found)):
            what, where = "digest differs from the one it carries", str(self.path / name)
            raise IntegrityError("RUN-01", what, where=where, fix=_RESTORE)

    def evaluations(self) -> dict[str, Path]:
        """Return the evaluations there are, name -> folder."""
        return {path.parent.name: path.parent for path in sorted(self.path.glob(f"{EVAL}/*/results.json"))}

    def _has(self, name: str) -> bool:
        return (self.path / name).is_file()

    def _content(self) -> list[str]:
        if self.path.is_symlink() and not self.path.exists():
            raise InputError("RUN-03", "a link that leads nowhere", where=str(self.path), fix="choose another -o")
        if self.path.exists() and not self.path.is_dir():
            raise InputError("RUN-03", "a file, not a folder", where=str(self.path), fix="choose another -o")
        if not self.path.is_dir():
            return []
        names = [item.name for item in self.path.iterdir()]
        return [name for name in names if name not in NOT_CONTENT and not name.startswith(".tmp-")]

    def _read(self, name: str) -> dict[str, Any]:
        atomic.refuse_link(self.path / name)
        return stored.read_record(self.path / name, dict[str, Any], fix=_RESTORE)


def _digest(record: dict[str, Any]) -> str:
    """Return the sha256 over a record, its own digest left out."""
    rest = {key: value for key, value in record.items() if key != "digest"}
    return hashlib.sha256(_json(rest)).hexdigest()


def _json(value: dict[str, Any]) -> bytes:
    """Return a record's bytes; a command line may hold bytes that are no text, and keeps them."""
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "surrogatepass")
