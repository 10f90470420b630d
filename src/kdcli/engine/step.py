"""One forward of :class:`DistillStep` is one micro-batch: from ids to the weighted sum of losses."""

from contextlib import nullcontext
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from kdcli.data.collate import Batch
from kdcli.engine.aligned import Aligned, AlignedTeacher
from kdcli.engine.chunked import Work, fused_sum
from kdcli.engine.features import FeatureComparison, feature_terms, weighted
from kdcli.engine.mixture import Mixture
from kdcli.engine.pack import Packing, find_valid
from kdcli.engine.projection import Projection
from kdcli.engine.teacher import OpenTeacher, Teacher
from kdcli.engine.workspace import Workspace
from kdcli.losses.base import DistillLoss
from kdcli.losses.coarse import Coarse
from kdcli.losses.layers import Features
from kdcli.losses.supplied import ALIGNED
from kdcli.losses.trial import sample, tokens_of, with_facts
from kdcli.models.load import LanguageModel


class DistillStep(nn.Module):
    """Holds the student; the teacher stays outside the module tree, without gradient.

    Args:
        student: the model that learns.
        teacher: the model it learns from; None when the objective needs none.
        loss: the objective.
        vocab: real ids, shared by both unless the teacher has others.
        reduce: mean over tokens, or over sequences' means.
        autocast: dtype of the forward passes; None computes in fp32.
        chunk_tokens: tokens whose logits exist at once; None chooses by device.
        seed: of the objective's learned parts, if it has any.

    Raises:
        UsageError: the objective compares a layer that does not exist.
        InputError: the objective compares layers of a model that cannot show them.
    """

    def __init__(
        self,
        student: LanguageModel,
        teacher: Teacher | None,
        loss: DistillLoss,
        *,
        vocab: int,
        reduce: Literal["token", "sequence"] = "token",
        autocast: torch.dtype | None = None,
        chunk_tokens: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.model, self.learned = student.model, nn.ModuleDict()
        self._outside = (student, teacher if loss.needs().anything_of_teacher else None)
        self.comparison: FeatureComparison | None = None
        if loss.needs().features:
            assert isinstance(teacher, OpenTeacher), "refused before: only a teacher that runs shows its layers"
            self.comparison = FeatureComparison(loss, student, teacher, seed)
            self.learned = self.comparison.learned
        self.loss, self.vocab, self.reduce, self.autocast = loss, vocab, reduce, autocast
        self.workspace = Workspace(chunk_tokens)

    def forward(self, batch: Batch, denominator: int, progress: float = 0.0) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the micro-batch's share of the step's loss, and the sums of its parts.

        Args:
            batch: padded ids and shifted labels.
            denominator: what the whole step divides by: valid tokens, or sequences.
            progress: share of the run that is done, 0 at its first step and 1 at its last.
        """
        packing = find_valid(batch.labels)
        weights = self._weights(packing, denominator)
        device = batch.input_ids.device
        precision = torch.autocast(device.type, self.autocast) if self.autocast else nullcontext()
        with precision:
            own, seen, features = self._look(batch, packing)
        facts, teacher_vocab = packing.facts(batch.facts), None
        if isinstance(seen, Aligned):
            seen, teacher_vocab, facts = seen.side, seen.vocab, facts | {ALIGNED: seen.known}
        work = Work(
            self.loss, packing.labels, weights, packing.sequence, seen, self.vocab, self.autocast or own.hidden.dtype,
            self.workspace, facts, progress, teacher_vocab=teacher_vocab,
        )  # fmt: skip
        total, parts = fused_sum(own, work)
        if features is not None:
            with precision:
                inner = feature_terms(work, features)
            total = total + weighted(inner, weights, self.learned)
            parts = parts | {name: part.detach() for name, part in inner.items()}
        return total, {name: (part * weights).sum() for name, part in {**work.watched, **parts}.items()}

    def rehearse(self, batch: Batch, *, teacher: bool) -> None:
        """Run the trunks over a batch as a step does, and the student's backward; drops no gradient.

        Args:
            batch: any sequences; no source needs to know them.
            teacher: whether the teacher runs too, rather than being read.
        """
        student, other = self._outside
        reader = other.inner if isinstance(other, AlignedTeacher) else other
        device = batch.input_ids.device
        with torch.autocast(device.type, self.autocast) if self.autocast else nullcontext():
            hidden = student.hidden(batch.input_ids, batch.attention_mask)
            if teacher and reader is not None:
                reader.side(batch, find_valid(batch.labels))
        hidden.sum().backward()

    def warm(self, device: torch.device) -> None:
        """Let the objective's formulas be compiled, where they are, on made-up tokens with the facts it needs."""
        run, loss = self.workspace.on(device), self.loss
        if not (run.compiles and loss.needs().logits):
            return
        compute = self.autocast or self._outside[0].head.weight.dtype
        data = sample(loss, tokens=4, entries=self.vocab).to(run.logits_dtype(compute)).on(device)
        with run.formulas():
            tok = tokens_of(loss, with_facts(loss, data))
        into = tok.student if tok.student.dtype == compute else tok.student.to(compute)
        run.gradient(loss, replace(tok, features=None), self._outside[0].head, into)

    def _look(
        self, batch: Batch, packing: Packing
    ) -> tuple[Projection, Projection | Mixture | Coarse | Aligned | None, Features | None]:
        """Run the trunks and return both sides at the valid tokens, and the layers compared, if any are."""
        student, teacher = self._outside
        if self.comparison is not None:
            own, theirs, features = self.comparison.look(batch, packing)
            return own, theirs if self.loss.needs().teacher else None, features
        hidden = packing.pack(student.hidden(batch.input_ids, batch.attention_mask))
        own = Projection(hidden, student.present_head())
        if isinstance(teacher, AlignedTeacher):
            return own, teacher.aligned(batch, packing), None
        return own, None if teacher is None else teacher.side(batch, packing), None

    def _weights(self, packing: Packing, denominator: int) -> Tensor:
        if self.reduce == "token":
            return torch.full((packing.count,), 1.0 / denominator, device=packing.labels.device)
        return (1.0 / denominator) / packing.lengths[packing.sequence].float()
