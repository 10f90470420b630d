"""Reads JSON files of strangers."""

import json
from pathlib import Path
from typing import Any

from kdcli import stored
from kdcli.errors import InputError, MachineError

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
