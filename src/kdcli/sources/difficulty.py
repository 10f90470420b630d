"""How hard each row of a data set is: measured once, kept under what it was measured from."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from kdcli import durable, stored
from kdcli.data.collate import IGNORED, collate
from kdcli.data.order import micro_batches
from kdcli.models.load import LanguageModel
from kdcli.sources.base import Ground

Difficulty: TypeAlias = Literal["length", "teacher_nll", "teacher_uncertainty", "student_nll"]

_ROWS_BYTES = 80 * 2**20
_BATCH_TOKENS = 8192


def difficulties(by: Difficulty, ground: Ground) -> list[float]:
    """Return the difficulty of each row of the data set, the same in every process.

    length: response tokens. teacher_nll, student_nll: mean of -log p of the labels, in nats, the student as it
    is now. teacher_uncertainty: mean of 1 - p of the labels. A row without a label has difficulty 0.

    What a model was asked for is kept in the ground's folder, under a digest of measure, rows and weights; a
    file that is not whole is made again.

    Args:
        by: the measure.
        ground: data set, the model that is measured with, processes, and the folder.
    """
    if by == "length":
        return [float(len(one.ids) - one.prompt_length) for one in ground.dataset.examples]
    model = ground.student if by == "student_nll" else ground.teacher
    assert model is not None, "the source's needs() declare the model"
    path = _kept_at(by, model, ground)
    known = _read(path, len(ground.dataset))
    if all(ground.gather([known is not None])) and known is not None:
        return known
    if path is not None and ground.rank == 0:
        durable.make_folder(path.parent)
    mine = list(range(len(ground.dataset)))[ground.rank :: ground.world]
    joined = dict(ground.gather(list(zip(mine, _measured(by, model, mine, ground), strict=True))))
    found = [joined[row] for row in range(len(ground.dataset))]
    if path is not None and ground.rank == 0:
        durable.write_file(path, json.dumps({"by": by, "model": model.digest, "digest": _digest(found), "rows": found}))
    return found


def _kept_at(by: Difficulty, model: LanguageModel, ground: Ground) -> Path | None:
    if ground.folder is None:
        return None
    restricted = [] if model.vocab == model.head.rows else [model.vocab]
    key = json.dumps([by, model.digest, ground.dataset.digest, *restricted])
    return ground.folder / f"difficulty-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def _read(path: Path | None, rows: int) -> list[float] | None:
    """Return what was measured before, None if there is nothing whole."""
    try:
        kept = stored.parse(path.read_bytes()) if path is not None else {}
        found = [float(value) for value in kept["rows"]]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return found if len(found) == rows and kept.get("digest") == _digest(found) else None


def _digest(values: Sequence[float]) -> str:
    return hashlib.sha256(json.dumps(list(values)).encode()).hexdigest()


@torch.no_grad()
def _measured(by: Difficulty, model: LanguageModel, rows: Sequence[int], ground: Ground) -> list[float]:
    """Measure some rows with a model in evaluation mode, which is put back."""
    examples, lengths = ground.dataset.examples, ground.dataset.lengths
    alone = model.head.weight.is_cpu  # so that a row's number does not depend on its company
    groups = [[row] for row in rows] if alone else micro_batches(rows, lengths, _BATCH_TOKENS)
    training, found = model.model.training, dict[int, float]()
    model.model.eval()
    try:
        for group in groups:
            batch = collate(examples, group, ground.pad_id).to(model.head.weight.device)
            hidden = model.hidden(batch.input_ids, batch.attention_mask)
            for at, row in enumerate(group):
                valid = batch.labels[at] != IGNORED
                log_p = _label_log_probs(model, hidden[at][valid], batch.labels[at][valid])
                each = -torch.expm1(log_p) if by == "teacher_uncertainty" else -log_p
                found[row] = each.mean().item() if len(each) else 0.0
    finally:
        model.model.train(training)
    return [found[row] for row in rows]


def _label_log_probs(model: LanguageModel, hidden: Tensor, labels: Tensor) -> Tensor:
    """Return log p of each label, ``[n]``, a bounded number of logits at a time."""
    rows = max(1, _ROWS_BYTES // (4 * model.vocab))
    pieces = []
    for start in range(0, len(labels), rows):
        logits = model.logits(hidden[start : start + rows]).float()
        pieces.append(torch.log_softmax(logits, -1).gather(1, labels[start : start + rows, None]).squeeze(1))
    return torch.cat(pieces) if pieces else hidden.new_zeros(0)
