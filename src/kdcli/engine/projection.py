"""A head restricted to the shared vocabulary, applied to a few tokens at a time."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from kdcli.engine.workspace import Workspace
from kdcli.models.split import Head


@dataclass(frozen=True)
class Projection:
    """One model's hidden states of the valid tokens, and the head that reads them.

    Args:
        hidden: shape ``[n, d]``.
        head: the output projection.
    """

    hidden: Float[Tensor, "n d"]
    head: Head


class AppliedHead:
    """Gives the logits of any span of tokens in a reused buffer.

    Args:
        name: buffer name; two heads in use at once need two names.
        side: hidden states and head.
        vocab: the head is restricted to the first so many ids.
        compute: dtype of the product.
        workspace: owner of the buffers.
    """

    def __init__(self, name: str, side: Projection, vocab: int, compute: torch.dtype, workspace: Workspace) -> None:
        self.name, self.workspace, self.vocab = name, workspace, vocab
        self.hidden, self.head = side.hidden.detach(), side.head
        self.weight = side.head.weight.detach()[:vocab].to(compute)
        self.execution = workspace.on(self.hidden.device)
        self.dtype = self.execution.logits_dtype(compute)
        self.bias = None if side.head.bias is None else side.head.bias.detach()[:vocab].to(compute)

    def buffer(self, rows: int) -> Tensor:
        """Return this head's buffer for so many tokens, with whatever it holds."""
        return self.workspace.logits(self.name, rows, self.vocab, self.dtype, self.hidden.device)

    def logits(self, span: slice) -> Tensor:
        """Return the logits of a span of tokens, ``[t, vocab]``, overwriting the buffer."""
        out = self.buffer(span.stop - span.start)
        hidden = self.hidden[span].to(self.weight.dtype)
        self.execution.product_into(out, hidden, self.weight, self.bias)
        self.head.apply_scale_and_cap_(out)
        return out


def wide(logits: Tensor) -> Tensor:
    """Return logits in at least fp32."""
    return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
