"""One forward of :class:`DistillStep` is one micro-batch: from ids to the weighted sum of losses."""

from contextlib import nullcontext
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from kdcli.data.batching import Batch
from kdcli.losses.base import Dims, DistillLoss, Features, Tokens
from kdcli.losses.samples import sample, tokens_of, with_facts
from kdcli.models.block import per_token
from kdcli.models.layers import (
    drop_no_attention,
    eager_attention,
    layer_outputs,
    shape_of,
    teacher_layer_outputs,
    use_eager,
    verify_layers,
)
from kdcli.models.load import LanguageModel
from kdcli.models.packing import Packing, Projection, Workspace, find_valid
from kdcli.teachers.base import Teacher, TeacherOutput
from kdcli.training.fused_loss import FusedInputs, fused_sum

# Terms of an objective on layers inside the two models: outside the chunked pass, by plain autograd.


class FeatureComparison:
    """Two models ready to show the layers that an objective compares, and its learned parts.

    Args:
        loss: the objective; it compares layers.
        student: changed where maps are asked for: eager attention, no attention dropout.
        teacher: left as it is.
        seed: of the learned parts.

    Raises:
        UsageError: FEAT-01, a layer that does not exist.
        InputError: MOD-24, a model whose layers cannot be collected.
    """

    def __init__(self, loss: DistillLoss, student: LanguageModel, teacher: LanguageModel, seed: int) -> None:
        self.student, self.teacher = student, teacher
        self.dims = Dims(shape_of(student.model.config), shape_of(teacher.model.config))
        self.asked = loss.matches(self.dims)
        if self.asked.attention:
            use_eager(student.model)
            drop_no_attention(student.model)
        verify_layers(student.model, self.asked.student, learns=True)
        with eager_attention(teacher.model, wanted=bool(self.asked.attention)):
            verify_layers(teacher.model, self.asked.teacher, learns=False)
        parameter = next(student.model.parameters())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.learned = loss.modules(self.dims)
        self.learned.to(parameter.device, torch.promote_types(parameter.dtype, torch.float32))

    def forward(self, batch: Batch, packing: Packing) -> tuple[Projection, Projection, Features]:
        """Run both trunks once; return both sides and the layers compared, all at the valid tokens."""
        own = layer_outputs(self.student, batch, packing, self.asked.student)
        theirs = teacher_layer_outputs(self.teacher, batch, packing, self.asked.teacher)
        reach = packing.positions % max(batch.labels.shape[1], 1) + 1
        return own.side, theirs.side, Features(own.inner, theirs.inner, reach, self.dims, self.learned)


def feature_terms(work: FusedInputs, features: Features) -> dict[str, Tensor]:
    """Return the terms on features, each ``[n]``, with gradient; what they log goes into the work.

    Args:
        work: the micro-batch, after the chunked pass, whose facts are seen here too.
        features: both models' layers at its tokens.
    """
    if not work.labels.numel():
        return {}
    empty = features.reach.new_zeros((len(work.labels), 0), dtype=torch.float32)
    tok = Tokens(work.labels, empty, None, work.planned, progress=work.progress, features=features)
    terms = per_token(work.loss, work.loss.feature_parts(tok), tok)
    work.logged.update(tok.logged)
    return terms


def weighted(terms: dict[str, Tensor], weights: Tensor, learned: nn.ModuleDict) -> Tensor:
    """Return the weighted sum of terms over tokens; without any it is a zero that every learned part belongs to."""
    zero = weights.new_zeros(()) + sum(parameter.sum() * 0.0 for parameter in learned.parameters())
    return zero + sum((term * weights.to(term.dtype)).sum() for term in terms.values())


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
            shown = None if teacher is None else teacher.single
            assert shown is not None, "refused before: only one teacher that runs shows its layers"
            self.comparison = FeatureComparison(loss, student, shown, seed)
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
        work = FusedInputs(
            self.loss, packing.labels, weights, packing.sequence, None if seen is None else seen.side, self.vocab,
            self.autocast or own.hidden.dtype, self.workspace,
            {**packing.facts(batch.facts), **({} if seen is None else seen.facts)}, progress,
            teacher_vocab=None if seen is None else seen.vocab,
        )  # fmt: skip
        total, parts = fused_sum(own, work)
        if features is not None:
            with precision:
                inner = feature_terms(work, features)
            total = total + weighted(inner, weights, self.learned)
            parts = parts | {name: part.detach() for name, part in inner.items()}
        return total, {name: (part * weights).sum() for name, part in {**work.logged, **parts}.items()}

    def begin(self, step: int, total: int) -> None:
        """Get ready for the micro-batches of an optimizer step; does nothing where all steps are alike.

        Args:
            step: from 0.
            total: steps of the run.
        """

    def finish(self) -> None:
        """Leave in the student all that was trained, after the last step."""

    def rehearse(self, batch: Batch, *, teacher: bool) -> None:
        """Run the trunks over a batch as a step does, and the student's backward; drops no gradient.

        Args:
            batch: any sequences; no source needs to know them.
            teacher: whether the teacher runs too, rather than being read.
        """
        student, reader = self._outside
        device = batch.input_ids.device
        with torch.autocast(device.type, self.autocast) if self.autocast else nullcontext():
            hidden = student.hidden(batch.input_ids, batch.attention_mask, batch.extra)
            if teacher and reader is not None:
                reader.rehearse(batch, find_valid(batch.labels))
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

    def _look(self, batch: Batch, packing: Packing) -> tuple[Projection, TeacherOutput | None, Features | None]:
        """Run the trunks and return both sides at the valid tokens, and the layers compared, if any are."""
        student, teacher = self._outside
        if self.comparison is not None:
            own, theirs, features = self.comparison.forward(batch, packing)
            return own, TeacherOutput(theirs) if self.loss.needs().teacher else None, features
        hidden = packing.pack(student.hidden(batch.input_ids, batch.attention_mask, batch.extra))
        own = Projection(hidden, student.current_head())
        return own, None if teacher is None else teacher.output(batch, packing), None

    def _weights(self, packing: Packing, denominator: int) -> Tensor:
        if self.reduce == "token":
            return torch.full((packing.count,), 1.0 / denominator, device=packing.labels.device)
        return (1.0 / denominator) / packing.lengths[packing.sequence].float()
