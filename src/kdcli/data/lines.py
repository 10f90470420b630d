"""Reads a text file line by line, gzipped or not, within limits and with line numbers."""

import gzip
import zlib
from collections.abc import Generator
from io import BufferedReader

from kdcli.data.files import Found, system_error
from kdcli.data.tables import MAX_LINE_BYTES, MAX_TOTAL_BYTES, size_text
from kdcli.errors import InputError

BOM = b"\xef\xbb\xbf"


def raw_lines(found: Found) -> Generator[tuple[int, bytes] | InputError, None, None]:
    """Yield numbered lines with their line ends; an over-long one comes as an error.

    Raises:
        InputError: the compressed stream is damaged or expands beyond the limit.
        MachineError: the file cannot be read.
    """
    name, number, total = found.path.name, 0, 0
    try:
        with _open(found) as file:
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                size = len(line)
                while size > MAX_LINE_BYTES and not line.endswith(b"\n") and line:
                    line = file.readline(MAX_LINE_BYTES)
                    _check_total(found, total + size)
                    size += len(line)
                total += size
                _check_total(found, total)
                if size > MAX_LINE_BYTES + 1:
                    yield InputError(
                        "DATA-10",
                        f"the line is {size_text(size)} long, the limit is {size_text(MAX_LINE_BYTES)}",
                        where=f"{name} line {number}",
                        fix="one row a line, each ended by a line break",
                    )
                else:
                    yield number, line.removeprefix(BOM) if number == 1 else line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        what = "cut off" if isinstance(error, EOFError) else "damaged"
        raise InputError(
            "DATA-03", f"the compressed file is {what}", where=f"{name} after line {number}", fix="fetch it again"
        ) from error
    except OSError as error:
        raise system_error(str(found.path), error) from error


def _open(found: Found) -> gzip.GzipFile | BufferedReader:
    return gzip.open(found.path, "rb") if found.compressed else found.path.open("rb")


def _check_total(found: Found, total: int) -> None:
    if found.compressed and total > MAX_TOTAL_BYTES:
        raise InputError(
            "DATA-11",
            f"expands to more than {size_text(MAX_TOTAL_BYTES)}",
            where=str(found.path),
            fix="unpack it, or split it into smaller files",
        )


def decode_text(line: bytes, where: str) -> str | InputError:
    """Return the UTF-8 text, or the error that says at which character it is invalid."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        position = len(line[: error.start].decode("utf-8", "replace")) + 1
        return InputError(
            "DATA-08", f"invalid UTF-8 at character {position}", where=where, fix="save the file as UTF-8"
        )


def whole_file(found: Found) -> bytes:
    """Return all bytes of a file.

    Raises:
        InputError: damaged, or larger than the limit.
        MachineError: the file cannot be read.
    """
    path = found.path
    try:
        with _open(found) as file:
            content = file.read(MAX_TOTAL_BYTES + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError("DATA-03", "the compressed file is damaged", where=path.name, fix="fetch it again") from error
    except OSError as error:
        raise system_error(str(path), error) from error
    if len(content) > MAX_TOTAL_BYTES:
        raise InputError(
            "DATA-10", f"larger than {size_text(MAX_TOTAL_BYTES)}", where=str(path), fix="give JSONL, one row a line"
        )
    return content
