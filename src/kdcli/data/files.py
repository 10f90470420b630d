"""Resolves a data path: file, folder, or hub id."""

import errno
import hashlib
import os
import re
import socket
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from kdcli.errors import InputError, KDError, MachineError
from kdcli.text import one_line

Kind = Literal["jsonl", "json", "csv", "tsv", "parquet", "saved", "hub"]

_KINDS: dict[str, Kind] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_ARCHIVES = (".zip", ".npz", ".tar", ".tgz", ".7z", ".rar", ".bz2", ".xz", ".zst", ".tbz2")
_ARCHIVE_STARTS = (b"PK\x03\x04", b"7z\xbc\xaf", b"Rar!", b"\xfd7zXZ", b"BZh", b"\x28\xb5\x2f\xfd")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.+-]+)?")
FORMATS = "give .jsonl, .jsonl.gz, .json, .csv or .parquet"


@dataclass(frozen=True)
class DataPath:
    """A data path and what it is.

    Args:
        path: the path, with ``~`` expanded; the hub id when ``kind`` is "hub".
        kind: how it is to be read.
        compressed: gzip around it.
    """

    path: Path
    kind: Kind
    compressed: bool = False


def inspect_path(path: str) -> DataPath:
    """Inspect a path without reading its rows.

    Args:
        path: file, saved ``datasets`` folder, or hub id ``owner/name`` with an optional ``:split``.

    Raises:
        InputError: missing, or not of a kind that is read.
        MachineError: not permitted.
    """
    try:
        place = Path(path).expanduser()
        status = place.stat()
    except FileNotFoundError:
        if _may_be_hub_id(path):
            return DataPath(Path(path), "hub")
        raise _missing(path) from None
    except (OSError, ValueError, RuntimeError) as error:
        raise system_error(path, error) from error
    if stat.S_ISDIR(status.st_mode):
        return _folder(place)
    if not stat.S_ISREG(status.st_mode):
        raise InputError("DATA-13", "is not a regular file (a pipe or device)", where=path, fix=FORMATS)
    if status.st_size == 0:
        raise InputError("DATA-02", "the file is empty", where=path, fix="give a file with at least one row")
    return _file(place)


def _missing(path: str) -> InputError:
    parent = Path(path).parent
    hint = "check the spelling, or give the full path"
    if parent.is_dir():
        near = sorted(entry.name for entry in parent.iterdir() if _suffix(entry)[0] in _KINDS)[:5]
        hint = f"data files there: {', '.join(near)}" if near else hint
    return InputError("DATA-01", f"not found (looked in {Path.cwd()})", where=one_line(path), fix=hint)


def _may_be_hub_id(path: str) -> bool:
    owner = path.partition("/")[0]
    named_like_a_file = _suffix(Path(path))[0] in {*_KINDS, *_ARCHIVES, ".gz", ".txt"}
    return bool(_HUB_ID.fullmatch(path)) and not named_like_a_file and owner != "." and not Path(owner).exists()


def _suffix(path: Path) -> tuple[str, bool]:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compressed = bool(suffixes) and suffixes[-1] == ".gz"
    if compressed:
        suffixes.pop()
    return (suffixes[-1] if suffixes else ("", ".gz")[compressed]), compressed


def _file(path: Path) -> DataPath:
    start = _read_start(path)
    suffix, _ = _suffix(path)
    compressed = start.startswith(b"\x1f\x8b")
    if suffix in _ARCHIVES or start.startswith(_ARCHIVE_STARTS) or start[257:262] == b"ustar":
        raise InputError("DATA-12", "archives are not read", where=str(path), fix="unpack it and give the file inside")
    if suffix not in _KINDS:
        named = f'"{suffix}" files are not read' if suffix else "the file name has no ending that says its format"
        raise InputError("DATA-13", named, where=str(path), fix=FORMATS)
    kind = _KINDS[suffix]
    if (kind == "parquet") != start.startswith(b"PAR1"):
        raise InputError("DATA-13", f"the content is not what the ending {suffix} says", where=str(path), fix=FORMATS)
    return DataPath(path, kind, compressed)


def _read_start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(512)
    except OSError as error:
        raise system_error(str(path), error) from error


def _folder(path: Path) -> DataPath:
    names = sorted(entry.name for entry in path.iterdir()) if os.access(path, os.R_OK) else []
    if "state.json" in names or "dataset_dict.json" in names:
        return DataPath(path, "saved")
    files = [one_line(name, 40) for name in names if _suffix(Path(name))[0] in _KINDS]
    fix = f"give one file of it: {', '.join(files[:5])}" if files else FORMATS
    if any(name.endswith(".py") for name in names):
        raise InputError("DATA-14", "the folder holds a script; scripts are never run", where=str(path), fix=fix)
    raise InputError("DATA-13", "is a folder, and not one saved by datasets", where=str(path), fix=fix)


def system_error(path: str, error: Exception) -> KDError:
    """Turn the operating system's refusal into a one-line error."""
    if isinstance(error, PermissionError):
        return MachineError("DATA-21", f"permission denied{_owner(path)}", where=path, fix="make it readable: chmod +r")
    if isinstance(error, OSError) and error.errno == errno.ELOOP:
        return InputError("DATA-22", "symbolic links lead in a circle", where=path, fix="give the real file")
    if isinstance(error, OSError) and error.errno not in (errno.ENAMETOOLONG, errno.ENOTDIR):
        return MachineError("DATA-21", f"cannot be read: {error.strerror or error}", where=path, fix="check the disk")
    reason = getattr(error, "strerror", None) or error
    return InputError("DATA-01", f"is no usable path: {reason}", where=one_line(path, 80), fix="check the spelling")


def _owner(path: str) -> str:
    try:
        status = os.stat(path)
    except OSError:
        return ""
    return f" (owner {status.st_uid}, mode {stat.filemode(status.st_mode)})"


def digest_files(paths: Iterable[Path]) -> str:
    """Return the sha256 of one file's bytes, or of the names and digests of several.

    Raises:
        MachineError: a file cannot be read.
    """
    digests = {path: _digest(path) for path in paths}
    if len(digests) == 1:
        return next(iter(digests.values()))
    lines = "".join(f"{digest}  {path.name}\n" for path, digest in digests.items())
    return hashlib.sha256(lines.encode()).hexdigest()


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise system_error(str(path), error) from error


# Whether the hub can be asked for data sets, found out at once instead of by half a minute of retries.


@contextmanager
def offline_if_unreachable() -> Iterator[None]:
    """Put ``datasets`` into offline mode while the hub cannot be reached."""
    import datasets.config

    offline = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = offline or not is_in_reach()
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = offline


def is_in_reach() -> bool:
    """Whether the hub's name resolves, or a proxy may know it."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    from huggingface_hub import constants

    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True
