"""Matrix products in fp32 on x86 processors, by oneDNN.

PyTorch hands them to MKL, which keeps its widest vector kernels for one maker's processors; oneDNN, which PyTorch
also holds and uses for bf16, chooses by what the processor can do. On an AMD processor with AVX-512 it is 1.5 to 2.5
times as fast. Which library computes a product follows from shapes, layout and dtype alone, never from a timing, so
that a run repeats bit for bit.
"""

import platform

import torch
from jaxtyping import Float
from torch import Tensor

_WORTH_IT = 2**22
"""Multiplications below which setting up a product costs what its kernel gains."""

_SLICE_BYTES = 2**22
"""Products are made in slices of so many bytes, which fit a cache and blocks that malloc keeps."""

HAS_ONEDNN = (
    platform.machine().lower() in ("x86_64", "amd64")
    and torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)


def worthwhile(left: Tensor, right: Tensor, work: int) -> bool:
    """Return whether a product of two matrices goes to oneDNN: fp32, on an x86 processor, and large enough.

    Args:
        left: any matrix.
        right: any matrix.
        work: multiplications of the product.
    """
    return (
        HAS_ONEDNN
        and work >= _WORTH_IT
        and left.dtype == right.dtype == torch.float32
        and left.device.type == right.device.type == "cpu"
    )


def product(
    left: Float[Tensor, "n k"], right: Float[Tensor, "m k"], bias: Tensor | None = None
) -> Float[Tensor, "n m"]:
    """Return ``left @ right.T + bias`` by oneDNN.

    Args:
        left: ``[n, k]``, the elements of a row side by side.
        right: ``[m, k]``, contiguous, or the transposed view of a contiguous matrix; other layouts are very slow.
        bias: ``[m]`` or None.
    """
    return torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")


def product_into(
    out: Float[Tensor, "n m"], left: Float[Tensor, "n k"], right: Float[Tensor, "m k"], bias: Tensor | None = None
) -> None:
    """Write ``left @ right.T + bias`` into ``out``.

    Args:
        out: ``[n, m]``, overwritten.
        left: ``[n, k]``.
        right: ``[m, k]``.
        bias: ``[m]`` or None.

    >>> out = torch.empty(1, 2)
    >>> product_into(out, torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [5.0, 6.0]]))
    >>> out.tolist()
    [[11.0, 17.0]]
    """
    plain = left.stride(-1) == 1 and right.is_contiguous()
    if not plain or not worthwhile(left, right, out.numel() * left.shape[1]):
        if bias is None:
            torch.mm(left, right.T, out=out)
        else:
            torch.addmm(bias, left, right.T, out=out)
        return
    for columns in _slices(len(right), len(left)):
        out[:, columns] = product(left, right[columns], None if bias is None else bias[columns])


def product_back(grad: Float[Tensor, "n m"], right: Float[Tensor, "m k"]) -> Float[Tensor, "n k"]:
    """Return ``grad @ right``, the gradient of ``left @ right.T`` over ``left``.

    >>> product_back(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0]])).tolist()
    [[11.0]]
    """
    plain = grad.stride(-1) == 1 and right.is_contiguous()
    if not plain or not worthwhile(grad, right, grad.numel() * right.shape[1]):
        return torch.mm(grad, right)
    return product(grad, right.T)


def add_outer(total: Float[Tensor, "m k"], grad: Float[Tensor, "n m"], left: Float[Tensor, "n k"]) -> None:
    """Add ``grad.T @ left``, the gradient of ``left @ right.T`` over ``right``, to ``total``.

    >>> total = torch.ones(2, 1)
    >>> add_outer(total, torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0]]))
    >>> total.tolist()
    [[4.0], [7.0]]
    """
    if not left.is_contiguous() or not worthwhile(grad, left, grad.numel() * left.shape[1]):
        total.addmm_(grad.T, left)
        return
    for columns in _slices(len(total), len(grad)):
        total[columns] += product(grad[:, columns].T.contiguous(), left.T)


def _slices(columns: int, rows: int) -> list[slice]:
    size = max(_SLICE_BYTES // (4 * rows) // 64 * 64, 64)
    return [slice(start, min(start + size, columns)) for start in range(0, columns, size)]
