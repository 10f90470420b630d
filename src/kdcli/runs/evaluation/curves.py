"""``curves.json`` and the pictures of an evaluation."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdcli import stored
from kdcli.errors import IntegrityError
from kdcli.metrics.curve import Curve, as_json, from_json

CURVES = "curves.json"


def write_curves(folder: Path, curves: Sequence[Curve], *, pictures: bool) -> None:
    """Write curves as data, and each as ``NAME.png`` and ``NAME.svg`` if asked for; nothing if there are none."""
    if not curves:
        return
    text = json.dumps([as_json(curve) for curve in curves], indent=1, ensure_ascii=False, allow_nan=False)
    (folder / CURVES).write_text(f"{text}\n", encoding="utf-8")
    if pictures:
        from kdcli.runs.pictures import draw  # matplotlib: only where something is drawn

        for curve in curves:
            draw(folder, curve)


def read_curves(folder: Path) -> tuple[Curve, ...]:
    """Read what ``write_curves`` wrote; nothing where there is no file.

    Raises:
        IntegrityError: the file holds something else.
    """
    path = folder / CURVES
    if not path.is_file():
        return ()
    fix = "evaluate again with kd eval"
    found = stored.read_record(path, list[dict[str, Any]], fix=fix)
    try:
        return tuple(map(from_json, found))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise IntegrityError("RUN-01", "holds no curves", where=str(path), fix=fix) from error
