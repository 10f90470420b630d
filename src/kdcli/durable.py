"""The only writer of durable files: nothing under a final name is ever half written.

A folder is filled under a temporary sibling name, every file is flushed to disk, digests go
into its ``manifest.json``, the folder is renamed, and the parent is flushed. A folder counts
only if its manifest verifies.
"""

import ctypes
import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from kdcli.errors import IntegrityError, MachineError

MANIFEST = "manifest.json"
SCHEMA = 1
_TEMPORARY = ".tmp-"
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
_MANIFEST_LIMIT = 4 * 2**20


def digest_file(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_files(paths: Iterable[Path]) -> str:
    """Return one sha256 over several files' names and bytes, in the order of their names."""
    total = hashlib.sha256()
    for path in sorted(paths, key=lambda item: item.name):
        total.update(f"{path.name}\0{digest_file(path)}\n".encode())
    return total.hexdigest()


def write_file(path: Path, data: bytes | str) -> None:
    """Replace a file durably: readers see the old bytes or the new ones.

    Raises:
        MachineError: the disk is full or may not be written.
    """
    raw = data.encode() if isinstance(data, str) else data
    temporary = path.with_name(f"{_TEMPORARY}{os.getpid()}-{path.name}")
    try:
        with temporary.open("wb") as file:
            file.write(raw)
            _flush(file.fileno())
        os.replace(temporary, path)
        flush_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise refused(error, path) from error


def commit_folder(final: Path, fill: Callable[[Path], None], extra: Mapping[str, Any] | None = None) -> None:
    """Make a folder appear whole or not at all.

    Args:
        final: the folder's name; an existing folder of that name is exchanged for the new one. Where the
            file system cannot exchange names it is set aside first, so a kill at that instant leaves neither.
        fill: writes the files into the temporary folder it is given.
        extra: further entries of the manifest, such as the step.

    Raises:
        MachineError: the disk is full or may not be written.
    """
    temporary = final.with_name(f"{_TEMPORARY}{os.getpid()}-{final.name}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        fill(temporary)
        manifest = {**(extra or {}), "schema": SCHEMA, "files": _inventory(temporary)}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True), encoding="utf-8")
        _flush_tree(temporary)
        _swap(temporary, final)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise refused(error, final) from error


def verify_folder(folder: Path) -> dict[str, Any]:
    """Check every digest of a folder and return its manifest.

    Raises:
        IntegrityError: names the first file that is not what the manifest says.
    """
    manifest = _read_manifest(folder)
    listed = manifest.get("files")
    if not isinstance(listed, dict):
        raise _damaged(folder / MANIFEST, "lists no files")
    for name, entry in listed.items():
        _verify_file(folder, name, entry)
    stray = {item["name"] for item in _walk(folder)} - set(listed) - {MANIFEST}
    if stray:
        raise _damaged(folder / min(stray), "is not in the manifest")
    return manifest


def sweep(folder: Path) -> None:
    """Remove what interrupted writers left: names of our own temporary form only."""
    for item in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(item) if item.is_dir() and not item.is_symlink() else item.unlink()


def flush_folder(folder: Path) -> None:
    """Flush a folder's entries to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        _flush(handle)
    finally:
        os.close(handle)


def refused(error: OSError, path: Path) -> MachineError:
    """Turn a refusal of the operating system into the one-line form."""
    return MachineError(
        "DISK-01",
        f"cannot be written: {error.strerror or error}",
        where=str(path),
        fix="free space or mend permissions, then run the same command again; what was saved before is intact",
    )


def _swap(temporary: Path, final: Path) -> None:
    old = temporary
    if not final.exists():
        os.replace(temporary, final)
    elif not _exchange(temporary, final):
        old = final.with_name(f"{_TEMPORARY}{os.getpid()}-old-{final.name}")
        os.replace(final, old)
        os.replace(temporary, final)
    flush_folder(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one operation; False where the system has none for it."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(other))


def _walk(folder: Path) -> list[dict[str, Any]]:
    found = []
    for root, _, names in os.walk(folder):
        for name in sorted(names):
            path = Path(root) / name
            found.append({"name": path.relative_to(folder).as_posix(), "path": path})
    return found


def _inventory(folder: Path) -> dict[str, dict[str, Any]]:
    return {
        item["name"]: {"size": item["path"].stat().st_size, "sha256": digest_file(item["path"])}
        for item in _walk(folder)
    }


def _flush_tree(folder: Path) -> None:
    for item in _walk(folder):
        with item["path"].open("rb") as file:
            _flush(file.fileno())
    for root, _, _ in os.walk(folder, topdown=False):
        flush_folder(Path(root))


def _flush(handle: int) -> None:
    os.fsync(handle)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if folder.is_symlink():
        raise _damaged(folder, "is a link; links are not followed in run folders")
    if not path.is_file() or path.is_symlink():
        raise _damaged(path, "is missing")
    if path.stat().st_size > _MANIFEST_LIMIT:
        raise _damaged(path, "is larger than 4 MiB")
    try:
        manifest = json.loads(path.read_bytes())
    except ValueError as error:
        raise _damaged(path, "is not JSON") from error
    if not isinstance(manifest, dict):
        raise _damaged(path, "is not an object")
    if manifest.get("schema") != SCHEMA:
        raise _damaged(path, f"has schema {manifest.get('schema')!r}, this version reads {SCHEMA}")
    return manifest


def _verify_file(folder: Path, name: str, entry: Any) -> None:
    relative = Path(name)
    if relative.is_absolute() or ".." in relative.parts:
        raise _damaged(folder / MANIFEST, f"names a file outside its folder: {name}")
    path = folder / relative
    try:
        mode = path.lstat().st_mode
    except OSError as error:
        raise _damaged(path, "is missing") from error
    if not stat.S_ISREG(mode):
        raise _damaged(path, "is not a regular file")
    if not isinstance(entry, dict) or path.stat().st_size != entry.get("size"):
        raise _damaged(path, "has another size than its manifest says")
    if digest_file(path) != entry.get("sha256"):
        raise _damaged(path, "digest differs from its manifest")


def _damaged(path: Path, what: str) -> IntegrityError:
    return IntegrityError("RUN-01", what, where=str(path), fix="restore the file, or remove the folder and run again")
