"""Reads and checks safetensors headers."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcli.errors import InputError, MachineError
from kdcli.storage import stored
from kdcli.text import one_line

_HEADER_LIMIT = 100_000_000
_SIZES = {
    "F64": 8,
    "I64": 8,
    "U64": 8,
    "F32": 4,
    "I32": 4,
    "U32": 4,
    "F16": 2,
    "BF16": 2,
    "I16": 2,
    "U16": 2,
} | dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1)


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file.

    Args:
        dtype: the file's name of its type, such as ``F32``.
        shape: its sizes.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bytes_per_number(self) -> int:
        """Bytes of one element."""
        return _SIZES[self.dtype]


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Return the tensors of a safetensors file without reading their values.

    Args:
        path: the file.

    Returns:
        name -> type and shape.

    Raises:
        InputError: MOD-08 where header and size disagree, MOD-21 where a name occurs twice.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _HEADER_LIMIT):
            raise _damaged(path, f"its header should be {length} bytes long, the whole file has {size}")
        raw = file.read(length)
    entries = _parse(raw, path)
    entries.pop("__metadata__", None)
    spans = sorted(_span(name, entry, path) for name, entry in entries.items())
    _check_cover(spans, size - 8 - length, path)
    return {name: TensorInfo(entry["dtype"], tuple(entry["shape"])) for name, entry in entries.items()}


def _parse(raw: bytes, path: Path) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise InputError(
                "MOD-21", f'the header names "{one_line(twice)}" twice', where=str(path), fix="save the weights again"
            )
        return table

    try:
        header = json.loads(raw, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "its header is not JSON") from error
    if not isinstance(header, dict):
        raise _damaged(path, "its header is not a table of tensors")
    return header


def _span(name: str, entry: Any, path: Path) -> tuple[int, int]:
    """Return where a tensor's bytes begin and end, if type, shape and offsets agree."""
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [*shape, begin, end]
    except (TypeError, KeyError, ValueError) as error:
        raise _damaged(path, f'the header\'s entry "{one_line(name)}" lacks type, shape or place') from error
    if not isinstance(dtype, str) or dtype not in _SIZES:
        raise InputError(
            "MOD-16",
            f'tensor {one_line(name)} has type "{one_line(str(dtype))}"; packed weights are not supported',
            where=str(path),
            fix="use the model's full-precision weights",
        )
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise _damaged(path, f'the header\'s entry "{one_line(name)}" holds sizes that are no counts')
    if end - begin != math.prod(shape) * _SIZES[dtype]:
        raise _damaged(path, f'tensor "{one_line(name)}" of shape {shape} does not fill its {end - begin} bytes')
    return begin, end


def _check_cover(spans: list[tuple[int, int]], size: int, path: Path) -> None:
    """Insist that the tensors' bytes follow each other without gap or overlap to the file's end."""
    position = 0
    for begin, end in spans:
        if begin != position:
            raise _damaged(path, f"tensors overlap or leave a gap at byte {begin}")
        position = end
    if position != size:
        raise _damaged(path, f"its header promises {position} bytes of tensors, the file holds {size}")


def _damaged(path: Path, what: str) -> InputError:
    return InputError("MOD-08", f"the file is damaged: {what}", where=str(path), fix="copy or download it again")


# Reads JSON files of strangers.


_LIMIT = 256 * 2**20


def read_table(path: Path, code: str) -> dict[str, Any]:
    """Return the JSON object in a file.

    Args:
        path: the file.
        code: identifier of the error.

    Raises:
        InputError: the file is no JSON object; says at which line, column and byte it breaks.
        MachineError: the file may not be read.
    """
    try:
        raw = path.read_bytes() if path.stat().st_size <= _LIMIT else b""
    except OSError as error:
        raise MachineError("ENV-01", f"cannot be read: {error.strerror}", where=str(path)) from error
    try:
        text = raw.decode("utf-8")
        table = stored.parse(text)
    except UnicodeDecodeError as error:
        raise _broken(path, code, f"not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        byte = len(text[: error.pos].encode())
        where = f"broken JSON at line {error.lineno} column {error.colno} (byte {byte} of {len(raw)})"
        raise _broken(path, code, where) from error
    except ValueError as error:
        raise _broken(path, code, "JSON nested too deeply, or with numbers too long") from error
    if not isinstance(table, dict):
        raise _broken(path, code, "expected a JSON object")
    return table


def _broken(path: Path, code: str, what: str) -> InputError:
    return InputError(code, what, where=str(path), fix="copy or download the file again")
