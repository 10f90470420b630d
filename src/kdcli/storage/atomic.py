"""The only writer of durable files: nothing under a final name is ever half written.

A folder is filled under a temporary sibling name, every file is flushed to disk, digests go
into its ``manifest.json``, the folder is renamed, and the parent is flushed. A folder counts
only if its manifest verifies.

Temporary names are random and made anew, no link is followed for writing, and no folder that has
gone is made again: a write into it fails. A write that failed is never repeated.
"""

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kdcli.errors import IntegrityError, KDError, MachineError

MANIFEST = "manifest.json"
SCHEMA = 2
_WITHOUT_DIGEST = 1
"""Schema of manifests that carry no digest of themselves; they are still read."""
_TEMPORARY, _ASIDE = ".tmp-", ".tmp-old-"
_OURS = re.compile(r"\.tmp-([0-9a-f]{16}|old-[0-9a-f]{16}-.+)", re.DOTALL)
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
_MANIFEST_LIMIT = 4 * 2**20
_BLOCK = 2**16
_RUST = re.compile(r"\(os error (\d+)\)")
"""How an input or output error of Rust's standard library ends; safetensors and tokenizers raise no OSError."""
MACHINE = frozenset(
    {
        errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENODEV, errno.ENOMEM,
        errno.ENOSPC, errno.ENXIO, errno.EPERM, errno.EROFS, errno.ESTALE,
    }
)  # fmt: skip
"""Numbers of errors that no file's content and no setting can cause."""


def digest_file(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_files(paths: Iterable[Path]) -> str:
    """Return one sha256 over several files' names and bytes, in the order of their names."""
    return joint_digest({path.name: digest_file(path) for path in paths})


def joint_digest(digests: Mapping[str, str]) -> str:
    """Return one sha256 over files' names and digests, in the order of their names."""
    total = hashlib.sha256()
    for name in sorted(digests):
        total.update(f"{name}\0{digests[name]}\n".encode())
    return total.hexdigest()


def digest_record(record: Mapping[str, Any]) -> str:
    """Return the sha256 of a JSON object, an entry ``digest`` left out, however it is indented and ordered.

    >>> digest_record({"b": 1, "a": 2}) == digest_record({"a": 2, "b": 1, "digest": "of both"})
    True
    """
    rest = {key: value for key, value in record.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def write_file(path: Path, data: bytes | str) -> None:
    """Replace a file durably: readers see the old bytes or the new ones; a link of that name is replaced.

    Raises:
        MachineError: the disk is full or may not be written, or the folder is gone.
    """
    raw = data.encode() if isinstance(data, str) else data
    temporary = _temporary(path)
    try:
        with _in_use(_open_new(temporary)) as handle:
            _write_all(handle, raw)
            _flush(handle)
            os.replace(temporary, path)
        flush_folder(path.parent)
    except OSError as error:
        _forget(temporary)
        raise disk_error(error, path) from error


def commit_folder(final: Path, fill: Callable[[Path], None], extra: Mapping[str, Any] | None = None) -> None:
    """Make a folder appear whole or not at all.

    Args:
        final: the folder's name, in a folder that is there; an existing folder of that name is exchanged for the
            new one. Where the file system cannot exchange names it is set aside first;
            :func:`remove_temporaries` puts it back if a kill came at that instant.
        fill: writes the files into the temporary folder it is given.
        extra: further entries of the manifest, such as the step.

    Raises:
        MachineError: the disk is full or may not be written, or the folder around it is gone.
    """
    temporary = _temporary(final)
    with disk_errors(final):
        try:
            temporary.mkdir()
            with _in_use(os.open(temporary, os.O_RDONLY | os.O_CLOEXEC)):
                fill(temporary)
                manifest = {**(extra or {}), "schema": SCHEMA, "files": _inventory(temporary)}
                manifest |= {"digest": digest_record(manifest)}
                with _in_use(_open_new(temporary / MANIFEST)) as handle:
                    _write_all(handle, json.dumps(manifest, indent=1, sort_keys=True).encode())
                _flush_tree(temporary)
                old = _swap(temporary, final)
        except Exception:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        flush_folder(final.parent)
    if old is not None:
        with contextlib.suppress(OSError):
            _remove(old)


@contextlib.contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """Give a folder inside another that is removed again; after a kill, by :func:`remove_temporaries`.

    Raises:
        MachineError: the disk refuses.
    """
    place = _temporary(folder / "scratch")
    with disk_errors(folder):
        place.mkdir()
        try:
            with _in_use(os.open(place, os.O_RDONLY | os.O_CLOEXEC)):
                yield place
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        _remove(place)


def make_folder(folder: Path) -> None:
    """Make a folder and its parents durably; one that exists stays.

    Raises:
        MachineError: it cannot be made.
    """
    try:
        missing = [one for one in (folder, *folder.parents) if not one.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        for one in missing:
            flush_folder(one.parent)
    except OSError as error:
        raise disk_error(error, folder) from error


def make_inside(root: Path, *names: str) -> Path:
    """Make folders one inside the other in a folder that is there, durably; return the innermost.

    Args:
        root: the folder around them; it is not made again if it has gone.
        names: theirs.

    Raises:
        IntegrityError: one of them is a link.
        MachineError: one cannot be made, or the root is gone.
    """
    folder = root
    for name in names:
        folder = folder / name
        try:
            if not folder.is_dir():
                folder.mkdir(exist_ok=True)
                flush_folder(folder.parent)
        except OSError as error:
            raise disk_error(error, folder) from error
        if folder.is_symlink():
            raise link_error(folder)
    return folder


def remove_folder(folder: Path) -> None:
    """Remove a folder so that it is there whole or under no name that counts.

    Raises:
        MachineError: it cannot be removed.
    """
    doomed = _temporary(folder)
    try:
        os.replace(folder, doomed)
        shutil.rmtree(doomed)
    except OSError as error:
        raise disk_error(error, folder) from error


def remove_file(path: Path) -> None:
    """Remove a file, if it is there.

    Raises:
        MachineError: it cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise disk_error(error, path) from error


def verify_folder(folder: Path) -> dict[str, Any]:
    """Check every digest of a folder and return its manifest.

    Raises:
        IntegrityError: names the first file that is not what the manifest says.
    """
    manifest = read_manifest(folder)
    listed = manifest.get("files")
    if not isinstance(listed, dict):
        raise _damaged(folder / MANIFEST, "lists no files")
    for name, entry in listed.items():
        _verify_file(folder, name, entry)
    stray = {item["name"] for item in _walk(folder)} - set(listed) - {MANIFEST}
    if stray:
        raise _damaged(folder / min(stray), "is not in the manifest")
    return manifest


def leftovers(folder: Path) -> list[Path]:
    """Return what interrupted writers left in a folder: names of our own temporary form that no process writes."""
    found = sorted(item for item in folder.glob(f"{_TEMPORARY}*") if _OURS.fullmatch(item.name))
    return [item for item in found if not _is_used(item)]


def remove_temporaries(folder: Path) -> None:
    """Remove what interrupted writers left, and put back a folder that was set aside for a new one that never came.

    What another process writes just now stays.

    Raises:
        MachineError: something cannot be removed.
    """
    for item in leftovers(folder):
        try:
            final = _set_aside(item)
            if final is not None and not final.exists():
                os.replace(item, final)
                flush_folder(folder)
            else:
                _remove(item)
        except OSError as error:
            raise disk_error(error, item) from error


def flush_folder(folder: Path) -> None:
    """Flush a folder's entries to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        _flush(handle)
    finally:
        os.close(handle)


def open_handle(path: Path | str, flags: int) -> int:
    """Open a regular file, of which no link is followed; also for the ``opener`` of :func:`open`.

    Args:
        path: the file.
        flags: as for :func:`os.open`.

    Raises:
        OSError: it cannot be opened; ELOOP for a link, EINVAL for what is no regular file.
    """
    handle = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return handle


class AppendOnlyFile:
    """An append-only file of lines. After a write that failed, nothing more is written, and nothing is tried again.

    Args:
        path: the file, in a folder that is there; made if need be, a link is refused.
        size: bytes that count, the rest is cut off; None cuts off a half written last line alone.

    Raises:
        IntegrityError: it is a link.
        MachineError: it may not be written.
    """

    def __init__(self, path: Path, size: int | None = None) -> None:
        self.path, self._handle, self._failed = path, -1, False
        self._is_new = not os.path.lexists(path)
        try:
            self._handle = open_handle(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
            self.found = os.fstat(self._handle).st_size
            self.size = self._whole_lines() if size is None else size
            if self.found > self.size:
                os.ftruncate(self._handle, self.size)
        except OSError as error:
            self._failed = True
            self.close()
            raise disk_error(error, path) from error

    def add(self, data: bytes) -> int:
        """Append whole lines, and return where they begin, in bytes; other processes may have appended before.

        Raises:
            MachineError: the disk refuses, or refused an earlier write.
        """
        self._attempt(lambda: _write_all(self._handle, data))
        self.size += len(data)
        return os.lseek(self._handle, 0, os.SEEK_CUR) - len(data)

    def settle(self) -> int:
        """Flush to disk what was added, and return the length in bytes.

        Raises:
            MachineError: the disk refuses, or refused an earlier write.
        """
        self._attempt(lambda: self._settle(self._handle))
        return self.size

    def close(self) -> None:
        """Flush to disk what was added, unless a write failed, and close the file.

        Raises:
            MachineError: the disk refuses now, and did not before.
        """
        handle, self._handle = self._handle, -1
        if handle < 0:
            return
        try:
            if not self._failed:
                self._settle(handle)
        except OSError as error:
            raise disk_error(error, self.path) from error
        finally:
            os.close(handle)

    def _settle(self, handle: int) -> None:
        """Flush the file, and once the entry of a new one: what a later file says of its length must hold."""
        _flush(handle)
        if self._is_new:
            flush_folder(self.path.parent)
            self._is_new = False

    def _attempt(self, work: Callable[[], None]) -> None:
        try:
            if self._failed:
                raise OSError(errno.EIO, "an earlier write failed")
            work()
        except OSError as error:
            self._failed = True
            raise disk_error(error, self.path) from error

    def _whole_lines(self) -> int:
        """Return the length up to the end of the last whole line."""
        end = self.found
        while end:
            start = max(0, end - _BLOCK)
            at = os.pread(self._handle, end - start, start).rfind(b"\n")
            if at >= 0:
                return start + at + 1
            end = start
        return 0


def system_error(error: BaseException) -> OSError | None:
    """Return the refusal of the operating system that an error is or comes from, None if there is none.

    >>> system_error(RuntimeError("I/O error: No space left on device (os error 28)")).errno == errno.ENOSPC
    True
    >>> system_error(ValueError("x")) is None
    True
    """
    if isinstance(error, OSError):
        return error
    seen: BaseException | None = error
    while seen is not None:
        number = _RUST.search(str(seen))
        if number is not None:
            return OSError(int(number[1]), os.strerror(int(number[1])))
        if isinstance(seen, OSError) and seen.errno in MACHINE:
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a refusal of the operating system, in whatever form a library raises it, into the one-line form.

    Args:
        path: what was being written.

    Raises:
        MachineError: DISK-01.
    """
    try:
        yield
    except KDError:
        raise
    except Exception as error:
        found = system_error(error)
        if found is None:
            raise
        raise disk_error(found, path) from error


def disk_error(error: OSError, path: Path) -> KDError:
    """Turn a refusal of the operating system into the one-line form."""
    if error.errno == errno.ELOOP and path.is_symlink():
        return link_error(path)
    return MachineError(
        "DISK-01",
        f"cannot be written: {error.strerror or error}",
        where=str(path),
        fix="free space or correct permissions, then run the same command again; what was saved before is intact",
    )


def refuse_link(path: Path) -> None:
    """Refuse a record that is a link: what a stranger's folder leads to is not read.

    Raises:
        IntegrityError: it is one.
    """
    if path.is_symlink():
        raise link_error(path)


def link_error(path: Path) -> IntegrityError:
    """Return the error that names a link where none is followed."""
    what = "is a link; links are not followed in run folders"
    return IntegrityError("RUN-01", what, where=str(path), fix="remove the link, then run the same command again")


def _temporary(final: Path) -> Path:
    """Return an unguessable sibling name."""
    return final.with_name(f"{_TEMPORARY}{secrets.token_hex(8)}")


def _remove(item: Path) -> None:
    if item.is_dir() and not item.is_symlink():
        shutil.rmtree(item)
    else:
        item.unlink()


def _set_aside(item: Path) -> Path | None:
    """Return the name that a folder had before it was set aside; None if it was not."""
    name = item.name.removeprefix(_ASIDE).partition("-")[2] if item.name.startswith(_ASIDE) else ""
    return item.with_name(name) if name else None


def _open_new(path: Path) -> int:
    """Open a file that must not be there yet."""
    return open_handle(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)


@contextlib.contextmanager
def _in_use(handle: int) -> Iterator[int]:
    """Mark a temporary file or folder as being written until the end, and close it; a process that dies marks none."""
    try:
        with contextlib.suppress(OSError):  # a file system without such marks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle
    finally:
        os.close(handle)


def _is_used(item: Path) -> bool:
    """Whether a process is writing a temporary file or folder."""
    try:
        handle = os.open(item, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False


def _write_all(handle: int, raw: bytes) -> None:
    left = memoryview(raw)
    while left:
        left = left[os.write(handle, left) :]


def _forget(path: Path) -> None:
    """Remove a temporary file, if possible; another error is being raised already."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _swap(temporary: Path, final: Path) -> Path | None:
    """Give a folder its final name; return where the one before lies now, None if there was none."""
    if not os.path.lexists(final):
        os.replace(temporary, final)
        return None
    if _exchange(temporary, final):
        return temporary
    old = final.with_name(f"{_ASIDE}{secrets.token_hex(8)}-{final.name}")
    os.replace(final, old)
    os.replace(temporary, final)
    return old


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


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return a folder's manifest; the digest that it carries of itself is checked, its files are not.

    Raises:
        IntegrityError: it is missing or damaged, or the folder is a link.
    """
    path = folder / MANIFEST
    if folder.is_symlink():
        raise link_error(folder)
    if not path.is_file() or path.is_symlink():
        raise _damaged(path, "is missing")
    if path.stat().st_size > _MANIFEST_LIMIT:
        raise _damaged(path, "is larger than 4 MiB")
    try:
        manifest = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "is not JSON") from error
    if not isinstance(manifest, dict):
        raise _damaged(path, "is not an object")
    schema = manifest.get("schema")
    if schema not in (SCHEMA, _WITHOUT_DIGEST):
        raise _damaged(path, f"has schema {schema!r}, this version reads {SCHEMA}")
    if schema == SCHEMA and manifest.get("digest") != digest_record(manifest):
        raise _damaged(path, "digest differs from the one it carries")
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
