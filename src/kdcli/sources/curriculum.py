"""Curriculum: easy rows first, hard ones later."""

import hashlib
import heapq
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal, TypeAlias

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from kdcli.data.batching import IGNORED, collate, micro_batches, random_bits
from kdcli.models.load import LanguageModel
from kdcli.sources.base import Source, SourceContext, SourceNeeds
from kdcli.sources.dataset import DatasetSource, DatasetWindows
from kdcli.storage import atomic, stored

# How hard each row of a data set is: measured once, kept under what it was measured from.


Difficulty: TypeAlias = Literal["length", "teacher_nll", "teacher_uncertainty", "student_nll"]

_ROWS_BYTES = 80 * 2**20
_BATCH_TOKENS = 8192


def difficulties(by: Difficulty, context: SourceContext) -> list[float]:
    """Return the difficulty of each row of the data set, the same in every process.

    length: response tokens. teacher_nll, student_nll: mean of -log p of the labels, in nats, the student as it
    is now. teacher_uncertainty: mean of 1 - p of the labels. A row without a label has difficulty 0.

    What a model was asked for is kept in the context's folder, under a digest of measure, rows and weights; a
    file that is not whole is made again.

    Args:
        by: the measure.
        context: data set, the model that is measured with, processes, and the folder.
    """
    if by == "length":
        return [float(len(one.ids) - one.prompt_length) for one in context.dataset.examples]
    model = context.student if by == "student_nll" else context.teacher
    assert model is not None, "the source's needs() declare the model"
    path = _kept_at(by, model, context)
    known = _read(path, len(context.dataset))
    if all(context.gather([known is not None])) and known is not None:
        return known
    if path is not None and context.rank == 0:
        atomic.make_folder(path.parent)
    mine = list(range(len(context.dataset)))[context.rank :: context.world]
    joined = dict(context.gather(list(zip(mine, _measured(by, model, mine, context), strict=True))))
    found = [joined[row] for row in range(len(context.dataset))]
    if path is not None and context.rank == 0:
        atomic.write_file(path, json.dumps({"by": by, "model": model.digest, "digest": _digest(found), "rows": found}))
    return found


def _kept_at(by: Difficulty, model: LanguageModel, context: SourceContext) -> Path | None:
    if context.folder is None:
        return None
    restricted = [] if model.vocab == model.head.rows else [model.vocab]
    key = json.dumps([by, model.digest, context.dataset.digest, *restricted])
    return context.folder / f"difficulty-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


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
def _measured(by: Difficulty, model: LanguageModel, rows: Sequence[int], context: SourceContext) -> list[float]:
    """Measure some rows with a model in evaluation mode, which is put back."""
    examples, lengths = context.dataset.examples, context.dataset.lengths
    alone = model.head.weight.is_cpu  # so that a row's number does not depend on the batch
    groups = [[row] for row in rows] if alone else micro_batches(rows, lengths, _BATCH_TOKENS)
    training, found = model.model.training, dict[int, float]()
    model.model.eval()
    try:
        for group in groups:
            batch = collate(examples, group, context.pad_id).to(model.head.weight.device)
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


class CurriculumSource(Source):
    """The rows of the training data, easy ones first: at each step a share c of the rows, by difficulty, is open.

    With x the share of the way done, from the first step to ``until``, the open share is::

        linear   c = start + (1 - start) x
        root     c = sqrt(start^2 + (1 - start^2) x)

    and 1 afterwards; at least one batch is open. Among the open rows those used least often come first, in an order
    that follows from the seed; so a run of two epochs or more uses every row, and all about equally often: what
    changes is when. A run of one epoch may leave out a few rows, fewer than a batch holds, where too few were open
    for a batch of new ones. ``start=1`` is plain shuffling, bit for bit the data set's. Difficulty is measured before
    the first step and kept in the run's folder: mean -log p of the labels under the teacher or under the student as
    it starts, mean 1 - p of the labels under the teacher, or the number of response tokens.

    >>> source = CurriculumSource(start=0.25, until=0.5)
    >>> [source.open_share(progress) for progress in (0.0, 0.25, 0.5, 1.0)]
    [0.25, 0.625, 1.0, 1.0]
    """

    name: ClassVar[str] = "curriculum"
    summary: ClassVar[str] = "the training rows, easy ones first"
    reference: ClassVar[str] = "Platanios et al. 2019, arXiv:1903.09848 (pacing by competence); Bengio et al. 2009"

    by: Annotated[Difficulty, Field(description="what makes a row hard")] = "length"
    first: Annotated[Literal["easy", "hard"], Field(description="which rows are open from the start")] = "easy"
    start: Annotated[float, Field(gt=0, le=1, description="share of the rows open at the first step")] = 0.2
    until: Annotated[float, Field(gt=0, le=1, description="share of the run at which all rows are open")] = 0.5
    pacing: Annotated[Literal["linear", "root"], Field(description="way from start to all")] = "linear"

    def needs(self) -> SourceNeeds:
        """Ask for the model that measures; every sequence is a row of the data set."""
        measured = {"student": self.by == "student_nll", "teacher": self.by.startswith("teacher")}
        return replace(DatasetSource().needs(), **measured)

    def open(self, context: SourceContext) -> "CurriculumWindows":
        """Return the windows of a run; rows are measured now, while the student is as it starts."""
        return CurriculumWindows(context, self)

    def open_share(self, progress: float) -> float:
        """Return the share of rows open at a share of the run, from 0 to 1."""
        way = progress / self.until
        if way >= 1.0:
            return 1.0
        if self.pacing == "linear":
            return self.start + (1.0 - self.start) * way
        return math.sqrt(self.start**2 + (1.0 - self.start**2) * way)


class CurriculumWindows(DatasetWindows):
    """Windows of a data set whose rows are opened one after the other.

    Args:
        context: data set, settings and models; without the model that measures, only steps are counted.
        source: its options.
    """

    def __init__(self, context: SourceContext, source: CurriculumSource) -> None:
        super().__init__(context)
        self.source = source
        self._plan: list[list[int]] = []
        self._step = 0
        needs = source.needs()
        absent = (needs.student and context.student is None) or (needs.teacher and context.teacher is None)
        if source.start < 1.0 and not absent:
            self._plan = list(self._drawn(self._ranked(difficulties(source.by, context))))

    def steps(self, epoch: int) -> list[list[int]]:
        """Return the examples of each step of an epoch, over all processes."""
        if self.source.start == 1.0:
            return super().steps(epoch)
        assert self._plan, "the model that measures was not there when the source was opened"
        size = self.steps_per_epoch
        return self._plan[epoch * size : (epoch + 1) * size]

    def window(self, step: int) -> list:
        """Return this process' micro-batches of a step, longest first."""
        self._step = step
        return super().window(step)

    def values(self) -> dict[str, float]:
        """Return the share of rows that was open."""
        return {**super().values(), "curriculum.open": self.source.open_share(self._progress(self._step))}

    def _progress(self, step: int) -> float:
        return step / max(self.total_steps - 1, 1)

    def _ranked(self, hard: Sequence[float]) -> list[int]:
        """Return the rows in the order in which they are opened; equally hard ones in file order."""
        sign = 1.0 if self.source.first == "easy" else -1.0
        return sorted(range(len(hard)), key=lambda row: (sign * hard[row], row))

    def _drawn(self, ranked: Sequence[int]) -> Iterator[list[int]]:
        """Yield the rows of each step: of the open ones those used least often, ties by lot."""
        train, count = self.context.train, len(ranked)
        lots: list[np.ndarray] = []
        pool: list[tuple[int, int, int]] = []

        def put(row: int, uses: int) -> None:
            if uses == len(lots):
                lots.append(random_bits(train.seed, uses, count))
            heapq.heappush(pool, (uses, int(lots[uses][row]), row))

        opened = 0
        for step in range(self.total_steps):
            share = self.source.open_share(self._progress(step))
            wanted = max(math.ceil(share * count - _ROUNDING), min(train.batch_size, count))
            for row in ranked[opened:wanted]:
                put(row, 0)
            opened = max(opened, wanted)
            taken = [heapq.heappop(pool) for _ in range(min(train.batch_size, opened))]
            for uses, _, row in taken:
                put(row, uses + 1)
            yield [row for _, _, row in taken]


_ROUNDING = 1e-9
"""Keeps ``share * rows`` from rising above a whole number by rounding."""
