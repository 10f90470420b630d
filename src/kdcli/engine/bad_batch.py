"""Ends a run whose loss or gradient is not finite, and keeps which rows made it so."""

import json
from pathlib import Path

import numpy as np

from kdcli import durable
from kdcli.data.collate import Batch
from kdcli.engine.ranks import Ranks
from kdcli.errors import NumericsError

NAME = "bad_batch.json"


def refuse_infinite(window: list[Batch], step: int, values: dict[str, float], folder: Path, ranks: Ranks) -> None:
    """Do nothing if loss and gradient norm are finite, in all processes.

    Args:
        window: this process's micro-batches.
        step: steps done before.
        values: what was measured over all processes, ``loss`` and ``gradient_norm`` among it.
        folder: where the rows are noted.
        ranks: the processes.

    Raises:
        NumericsError: one of them is not.
    """
    if np.isfinite([values["loss"], values["gradient_norm"]]).all():
        return
    rows = ranks.rows(window)
    path = folder / NAME
    if ranks.main:
        record = {"step": step, "rows": rows, "values": {name: repr(value) for name, value in values.items()}}
        durable.write_file(path, json.dumps(record))
    bad = next(name for name, value in values.items() if not np.isfinite(value))
    raise NumericsError(
        "NUM-01",
        f"{bad} is {values[bad]} at step {step + 1}; no update was made, rows are in {path.name}",
        where=str(folder),
        fix="lower --lr, or look at those rows; the last checkpoint is intact",
    )
