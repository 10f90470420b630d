"""The interface of teachers: hidden states of valid tokens, and a head to read them."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from kdcli.data.batching import Batch
from kdcli.losses.base import Layers
from kdcli.losses.topk import TopKWithTail
from kdcli.models.layers import teacher_layer_outputs
from kdcli.models.load import LanguageModel
from kdcli.models.packing import ChunkLogits, Packing, Predictions, Projection, Workspace

# Ensembles of teachers: their distributions mixed, a chunk of tokens at a time.


@dataclass(frozen=True)
class Mixture(Predictions):
    """Several models' hidden states of the valid tokens, and how their distributions are mixed.

    ``probability``: ``p = sum_k w_k p_k``. ``log``: the geometric mean, ``log p = sum_k w_k log p_k`` less its
    normaliser.

    Args:
        members: each model's hidden states and head.
        weights: one above 0 for each, sum 1.
        space: where they are mixed.
    """

    members: tuple[Projection, ...]
    weights: tuple[float, ...]
    space: Literal["probability", "log"] = "probability"

    def apply(self, name: str, vocab: int, compute: torch.dtype, workspace: Workspace) -> "AppliedMixture":
        """Return what mixes the members' logits."""
        return AppliedMixture(name, self, vocab, compute, workspace)

    def rows(self, index: Tensor) -> "Mixture":
        """Return every member's hidden states at some tokens, 0 where there is none."""
        return replace(self, members=tuple(member.rows(index) for member in self.members))


class AppliedMixture(ChunkLogits):
    """Gives the mixed logits of any span of tokens in a reused buffer; one more holds the member in hand.

    Args:
        name: buffer name.
        side: the members.
        vocab: every head is restricted to the first so many ids.
        compute: dtype of the head products; the mixture is taken in fp32 or wider.
        workspace: owner of the buffers.
    """

    def __init__(self, name: str, side: Mixture, vocab: int, compute: torch.dtype, workspace: Workspace) -> None:
        self.name, self.side, self.vocab, self.workspace = name, side, vocab, workspace
        self.dtype = torch.float64 if compute == torch.float64 else torch.float32
        self.heads = [one.apply(f"{name}/member", vocab, compute, workspace) for one in side.members]

    def buffer(self, rows: int) -> Tensor:
        """Return the buffer for so many tokens, with whatever it holds."""
        device = self.side.members[0].hidden.device
        return self.workspace.logits(self.name, rows, self.vocab, self.dtype, device)

    def logits(self, span: slice) -> Tensor:
        """Return the mixed logits of a span of tokens, ``[t, vocab]``, overwriting the buffer."""
        out = self.buffer(span.stop - span.start)
        for index, (head, weight) in enumerate(zip(self.heads, self.side.weights, strict=True)):
            logits = head.logits(span).to(self.dtype)
            if self.side.space == "log":
                share = logits.mul_(weight)
                torch.add(out, share, out=out) if index else out.copy_(share)
            else:
                share = logits.sub_(torch.logsumexp(logits, dim=-1, keepdim=True)).add_(math.log(weight))
                torch.logaddexp(out, share, out=out) if index else out.copy_(share)
        return out


@dataclass(frozen=True)
class TeacherOutput:
    """What a teacher gives for a micro-batch's valid tokens.

    Args:
        side: hidden states and the head that reads them, or those of several models and how to mix them; or, of a
            compact cache or a server, the likeliest tokens and the rest.
        vocab: its real ids, where they are not the student's.
        facts: further facts about each token, each of shape ``[n]``.
    """

    side: Predictions | TopKWithTail
    vocab: int | None = None
    facts: Mapping[str, Tensor] = field(default_factory=dict)


class Teacher(ABC):
    """What the student learns from, running or read from a file; a kind of teacher says here what it is."""

    @property
    def models(self) -> tuple[LanguageModel, ...]:
        """Those that run in this process whenever it is asked: none for a cache, or for a server."""
        return ()

    @property
    def single(self) -> LanguageModel | None:
        """The one model it is, whose layers can be collected and cut into shards; None for any other teacher."""
        return None

    @property
    def readers(self) -> int:
        """How many models read a sequence when it is asked, here or on a server."""
        return len(self.models)

    @abstractmethod
    def side(self, batch: Batch, packing: Packing) -> Predictions | TopKWithTail:
        """Return hidden states or bins of a micro-batch's valid tokens, without gradient."""

    def output(self, batch: Batch, packing: Packing) -> TeacherOutput:
        """Return everything a training step takes from it, without gradient."""
        return TeacherOutput(self.side(batch, packing))

    def rehearse(self, batch: Batch, packing: Packing) -> None:
        """Run what :meth:`side` runs, over sequences that belong to no row."""
        self.side(batch, packing)

    def after_checkpoint(self, kept: int) -> None:
        """Called when a checkpoint was saved.

        Args:
            kept: how many checkpoints there are at most.
        """
        return


class LiveTeacher(Teacher):
    """A teacher that runs, under whatever autocast the caller is in.

    On a CPU every sequence goes through the trunk alone and without padding: its hidden states then
    depend on the sequence only, not on the rest of the batch, so what was kept from an earlier pass equals a new
    pass bit for bit. On an accelerator the micro-batch stays together.

    Args:
        model: the teacher; no gradient is taken.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.model = model

    @property
    def models(self) -> tuple[LanguageModel, ...]:
        """The one that runs."""
        return (self.model,)

    @property
    def single(self) -> LanguageModel:
        """The one that runs."""
        return self.model

    def side(self, batch: Batch, packing: Packing) -> Projection:
        """Run the trunk and gather the valid tokens' hidden states."""
        return teacher_layer_outputs(self.model, batch, packing, Layers()).side


def live_models(teacher: Teacher | None) -> tuple[LanguageModel, ...]:
    """Return the models that run whenever a teacher is asked, if there is one."""
    return () if teacher is None else teacher.models
