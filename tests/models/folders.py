"""Model folders to break: one good one, copied, then damaged by a test."""

import json
import shutil
import struct
from pathlib import Path


def copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def edit(path: Path, **changes) -> None:
    table = json.loads(path.read_text(encoding="utf-8"))
    for key, value in changes.items():
        if value is ...:
            table.pop(key, None)
        else:
            table[key] = value
    path.write_text(json.dumps(table), encoding="utf-8")


def header(path: Path) -> tuple[dict, bytes]:
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def write(path: Path, header_text: str, body: bytes) -> None:
    raw = header_text.encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + body)
