"""The interface of teachers: hidden states of valid tokens, and a head to read them."""

import math
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from kdcli.data.batching import Batch
from kdcli.losses.base import Layers
from kdcli.losses.topk import TopKWithTail
from kdcli.models.layers import LayerOutputs, teacher_layer_outputs
from kdcli.models.load import LanguageModel
from kdcli.models.packing import AppliedHead, Packing, Projection, Workspace

# Ensembles of teachers: their distributions mixed, a chunk of tokens at a time.


@dataclass(frozen=True)
class Mixture:
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


class AppliedMixture:
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
        self.heads = [AppliedHead(f"{name}/member", one, vocab, compute, workspace) for one in side.members]

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


def applied(
    name: str, side: Projection | Mixture, vocab: int, compute: torch.dtype, workspace: Workspace
) -> AppliedHead | AppliedMixture:
    """Return what gives the logits of one model, or of several that are mixed."""
    if isinstance(side, Mixture):
        return AppliedMixture(name, side, vocab, compute, workspace)
    return AppliedHead(name, side, vocab, compute, workspace)


@runtime_checkable
class Teacher(Protocol):
    """A teacher as the engine sees it, running or remembered."""

    @property
    def models(self) -> tuple[LanguageModel, ...]:
        """Those that run whenever it is asked: none for a cache, or for a server."""
        ...

    def side(self, batch: Batch, packing: Packing) -> Projection | Mixture | TopKWithTail:
        """Return what it says of a micro-batch's valid tokens, without gradient.

        Hidden states and the head that reads them, or those of several models and how to mix them; or, of a
        compact cache, the likeliest tokens and the rest.
        """
        ...


@runtime_checkable
class OpenTeacher(Teacher, Protocol):
    """A teacher whose layers can be looked at while it runs."""

    model: LanguageModel

    def look(self, batch: Batch, packing: Packing, layers: Layers) -> LayerOutputs:
        """Return what :meth:`side` does, and the layers asked for."""
        ...


class LiveTeacher:
    """A teacher that runs, under whatever autocast the caller is in.

    On a CPU every sequence goes through the trunk alone and without padding: its hidden states then
    depend on the sequence only, not on its company, so what was kept from an earlier pass equals a new
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

    def side(self, batch: Batch, packing: Packing) -> Projection:
        """Run the trunk and gather the valid tokens' hidden states."""
        return self.look(batch, packing, Layers()).side

    def look(self, batch: Batch, packing: Packing, layers: Layers) -> LayerOutputs:
        """Run the trunk once and gather the valid tokens' states in the layers asked for, too."""
        return teacher_layer_outputs(self.model, batch, packing, layers)


def live_models(teacher: Teacher | None) -> tuple[LanguageModel, ...]:
    """Return the models that run whenever a teacher is asked, if there is one."""
    return () if teacher is None else teacher.models
