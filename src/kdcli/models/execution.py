"""How the chunked pass runs on a CPU or an accelerator; the one place where they differ.

The formulas are the same on both. A CPU takes few rows at a time, so that they stay in its cache, and takes single
tokens again where a closed form has lost digits. An accelerator takes a whole chunk in compiled kernels, reads
nothing on the host, and adds its products of bf16 matrices up in fp32.
"""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cache, cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdcli.errors import MachineError
from kdcli.losses.base import DistillLoss, Tokens, widen
from kdcli.losses.rows import without_host_reads
from kdcli.models.block import block_gradient
from kdcli.models.head import Head
from kdcli.models.kernels import add_outer, product_into
from kdcli.models.toolchain import check_toolchain

if TYPE_CHECKING:
    from kdcli.models.pointwise import Pointwise


_CPU_CHUNK = 5 * 2**22
_CPU_BLOCK = 2**20
_MOST = 2**28
"""Logits of one side that a chunk has at most: of a larger one the products would not be faster."""
_SHARE = 4
"""A chunk takes at most so small a part of an accelerator's free memory."""
_COMPILED_BYTES, _PLAIN_BYTES = 16, 64
"""Memory of a chunk per vocabulary entry and token: buffers, and without a compiler what passes leave behind."""


class Execution(ABC):
    """How the chunked pass runs on a device.

    Attributes:
        notes: what is not as fast there as it could be, a sentence each.
        compiles: whether formulas are compiled.
    """

    notes: list[str]
    compiles: bool

    @abstractmethod
    def chunk(self, vocab: int) -> int:
        """Return the tokens of one head product."""

    @abstractmethod
    def block(self, vocab: int, chunk: int) -> int:
        """Return the tokens of one pointwise pass."""

    def pass_bytes(self) -> int | None:
        """Return the bytes a pass takes per logit besides logits and gradient; None where the objective decides."""
        return None

    @abstractmethod
    def logits_dtype(self, compute: torch.dtype) -> torch.dtype:
        """Return in which dtype a head product of matrices in another one is kept."""

    @abstractmethod
    def product_into(self, out: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        """Write ``hidden @ weight.T + bias`` into ``out``, ``[t, v]``."""

    @abstractmethod
    def add_outer(self, total: Tensor, grad: Tensor, hidden: Tensor) -> None:
        """Add ``grad.T @ hidden`` to ``total``, ``[v, d]``, fp32 or wider."""

    @abstractmethod
    def formulas(self) -> AbstractContextManager[None]:
        """Return what an objective's formulas run in."""

    @abstractmethod
    def gradient(self, loss: DistillLoss, tok: Tokens, head: Head, into: Tensor | None) -> dict[str, Tensor]:
        """Return the parts of some tokens, and write the gradient over the head product.

        Args:
            loss: the objective.
            tok: the tokens, their logits as the heads gave them.
            head: the student's.
            into: where the gradient goes, ``[t, v]``; None if none is wanted.
        """

    @abstractmethod
    def factor(self, upstream: Tensor) -> Tensor | float:
        """Return the factor that all gradients get, as a number if it can be had without waiting."""


class OnCPU(Execution):
    """Chunks that fit the caches, formulas on a few rows at a time."""

    compiles = False

    def __init__(self) -> None:
        self.notes = []

    def chunk(self, vocab: int) -> int:
        """Return as many tokens as fit 80 MiB of fp32 logits.

        >>> OnCPU().chunk(50257)
        416
        """
        return max(_CPU_CHUNK // vocab // 32 * 32, 32)

    def block(self, vocab: int, chunk: int) -> int:
        """Return few enough tokens to stay in cache."""
        return max(_CPU_BLOCK // vocab, 1)

    def logits_dtype(self, compute: torch.dtype) -> torch.dtype:
        """Return the dtype of the matrices."""
        return compute

    def product_into(self, out: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        """Write the product."""
        product_into(out, hidden, weight, bias)

    def add_outer(self, total: Tensor, grad: Tensor, hidden: Tensor) -> None:
        """Add the product; of bf16 matrices it is rounded to bf16 once per chunk."""
        if grad.dtype == total.dtype:
            add_outer(total, grad, hidden)
        else:
            total += torch.mm(grad.T, hidden.to(grad.dtype))

    def formulas(self) -> AbstractContextManager[None]:
        """Let formulas read numbers."""
        return nullcontext()

    def gradient(self, loss: DistillLoss, tok: Tokens, head: Head, into: Tensor | None) -> dict[str, Tensor]:
        """Take the objective's closed form, or autograd."""
        values, grad = block_gradient(loss, _widened(tok), head, into is not None)
        if grad is not None and into is not None and grad.data_ptr() != into.data_ptr():
            into.copy_(grad)
        return values

    def factor(self, upstream: Tensor) -> Tensor | float:
        """Return the number."""
        return upstream.item()


class OnAccelerator(Execution):
    """Large chunks, compiled formulas, products in fp32, and nothing read on the host.

    Args:
        device: where.
        compiles: whether there is a compiler for it.
        planned: bytes that are free, the models loaded, on a GPU that need not be here; None for a device that is.
    """

    def __init__(self, device: torch.device, *, compiles: bool, planned: int | None = None) -> None:
        self.device, self.compiles, self.planned, self.notes = device, compiles, planned, []
        self._chunks: dict[int, int] = {}

    @cached_property
    def _pointwise(self) -> "Pointwise | None":
        if not self.compiles:
            return None
        from kdcli.models.pointwise import Pointwise

        return Pointwise(self.notes.append)

    def chunk(self, vocab: int) -> int:
        """Return as many tokens as a quarter of the free memory holds, but no more than make 2^28 logits.

        A power of 2, found once for a vocabulary, so that a run on the same device has the same chunks unless its
        memory is scarce.
        """
        if vocab not in self._chunks:
            free = free_memory(self.device) if self.planned is None else max(self.planned, 0)
            each = _COMPILED_BYTES if self.compiles else _PLAIN_BYTES
            fitting = _MOST if free is None else min(free // (_SHARE * each), _MOST)
            self._chunks[vocab] = max(1 << max(fitting // vocab, 1).bit_length() - 1, 32)
        return self._chunks[vocab]

    def block(self, vocab: int, chunk: int) -> int:
        """Return the whole chunk."""
        return chunk

    def pass_bytes(self) -> int | None:
        """Return what a chunk of compiled passes is planned with, less the logits of both sides and a gradient."""
        return _COMPILED_BYTES - 2 * 4 - 2 if self.compiles else None

    def logits_dtype(self, compute: torch.dtype) -> torch.dtype:
        """Return fp32 for matrices in bf16 where the device gives their product so, without a copy."""
        return torch.float32 if self.planned is not None or widens(self.device.type, compute) else compute

    def product_into(self, out: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        """Write the product, added up in fp32 and kept so if ``out`` is."""
        if out.dtype == hidden.dtype:
            product_into(out, hidden, weight, bias)
            return
        torch.mm(hidden, weight.T, out_dtype=out.dtype, out=out)
        if bias is not None:
            out += bias

    def add_outer(self, total: Tensor, grad: Tensor, hidden: Tensor) -> None:
        """Add the product, in fp32 without a second copy where the device can."""
        hidden = hidden.to(grad.dtype)
        if grad.dtype == total.dtype:
            total.addmm_(grad.T, hidden)
        elif widens(self.device.type, grad.dtype):
            torch.addmm(total, grad.T, hidden, out_dtype=total.dtype, out=total)
        else:
            total += torch.mm(grad.T, hidden)

    def formulas(self) -> AbstractContextManager[None]:
        """Let formulas read nothing."""
        return without_host_reads()

    def gradient(self, loss: DistillLoss, tok: Tokens, head: Head, into: Tensor | None) -> dict[str, Tensor]:
        """Run the objective's compiled code, or its formulas as they are where there is none."""
        if self._pointwise is not None and into is not None and len(tok.labels) > 1:
            found = self._pointwise(loss, tok, head, into)
            if found is not None:
                return found
        with self.formulas():
            values, grad = block_gradient(loss, _widened(tok), head, into is not None)
        if grad is not None and into is not None:
            into.copy_(grad)
        return values

    def factor(self, upstream: Tensor) -> Tensor | float:
        """Return the tensor: its number would have to be waited for."""
        return upstream


@cache
def execution_on(device: torch.device) -> Execution:
    """Return how the chunked pass runs on a device; for an accelerator without a compiler a note says so."""
    if device.type == "cpu":
        return OnCPU()
    try:
        check_toolchain(device.type)
    except MachineError as error:
        found = OnAccelerator(device, compiles=False)
        found.notes.append(f"objectives run uncompiled on this {device.type.upper()} device: {error.what}")
        return found
    return OnAccelerator(device, compiles=True)


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that a process can still have on a device; None where it does not say."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    return None


@cache
def widens(kind: str, dtype: torch.dtype) -> bool:
    """Return whether a kind of device gives products of matrices in half precision as fp32.

    PyTorch says that CUDA alone does, from which versions and builds of it may differ; so it is tried.
    """
    if kind != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return False
    one = torch.ones((16, 16), dtype=dtype, device=kind)
    try:
        total = torch.mm(one, one.T, out_dtype=torch.float32)
        torch.addmm(total, one.T, one, out_dtype=torch.float32, out=total)
    except (RuntimeError, TypeError):
        return False
    return True


def _widened(tok: Tokens) -> Tokens:
    """Return the tokens with logits in fp32 or wider."""
    wide = [None if side is None else widen(side) for side in (tok.student, tok.teacher)]
    if wide[0] is tok.student and wide[1] is tok.teacher:
        return tok
    assert wide[0] is not None, "there is always a student"
    return replace(tok, student=wide[0], teacher=wide[1])
