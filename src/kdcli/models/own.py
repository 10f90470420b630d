"""Digests of a model folder's files, compared with its manifest where this package wrote one."""

from dataclasses import dataclass
from pathlib import Path

from kdcli import durable, stored
from kdcli.errors import IntegrityError
from kdcli.models.folder import ModelFolder

_UNREAD = ".md"
"""Ending of the files that change no number: a model card may be edited."""


@dataclass(frozen=True)
class _File:
    size: int
    sha256: str


@dataclass(frozen=True)
class _Manifest:
    """The shape of a folder's manifest; files of that name by other programs have another."""

    schema: int
    kind: str
    files: dict[str, _File]


def model_digest(checked: ModelFolder) -> str:
    """Return the sha256 over weight files and config.json, the same whether or not the folder has a manifest.

    Raises:
        IntegrityError: a file that is read is not what the folder's manifest says.
    """
    digests = {path.name: durable.digest_file(path) for path in (*checked.files, checked.folder / "config.json")}
    _compare(checked.folder, digests)
    return durable.joint_digest(digests)


def check_manifest(folder: Path) -> None:
    """Refuse a student of a run whose manifest is gone: nothing says any more what its files must be.

    Raises:
        IntegrityError: there is none.
    """
    if not (folder / durable.MANIFEST).is_file():
        raise _differs(folder / durable.MANIFEST, "is missing")


def _compare(folder: Path, known: dict[str, str]) -> None:
    path = folder / durable.MANIFEST
    if not path.is_file():
        return
    found = stored.read_record(path, dict[str, object])
    if not _is_ours(found):
        return
    listed = stored.fit(found, _Manifest, path).files
    if found.get("digest") not in (None, durable.digest_record(found)):
        raise _differs(path, "digest differs from the one it carries")
    for name in known:
        if name not in listed:
            raise _differs(folder / name, "is not in the folder's manifest.json")
    for name, entry in listed.items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise _differs(path, "names a file outside its folder")
        if name.endswith(_UNREAD):
            continue
        if not (folder / name).is_file():
            raise _differs(folder / name, "is missing; the folder's manifest.json lists it")
        if (known.get(name) or durable.digest_file(folder / name)) != entry.sha256:
            raise _differs(folder / name, "digest differs from the folder's manifest.json")


def _is_ours(found: dict[str, object]) -> bool:
    return found.get("kind") == "model" or ("schema" in found and isinstance(found.get("files"), dict))


def _differs(path: Path, what: str) -> IntegrityError:
    fix = "restore the file, or train again; where it was changed on purpose, remove manifest.json from a copy"
    return IntegrityError("RUN-01", what, where=str(path), fix=fix)
