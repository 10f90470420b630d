"""fp32 products and linear layers by oneDNN, and fused activations.

What a compiler reads carries no checks of types at run time: it would have to compile them too.
"""

import platform
from typing import Any, no_type_check

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kdcli.models.internals import Conv1D, FastGELUActivation, NewGELUActivation

# Matrix products in fp32 on x86 processors, by oneDNN.


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


# Linear layers inside compiled code: operations of their own, whose library is chosen when they run.


@no_type_check
def compiled_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``x W' + b``, for code that is being compiled.

    Args:
        x: ``[.., in]``.
        weight: ``[out, in]``, contiguous or a transposed view of such.
        bias: ``[out]`` or None.

    >>> compiled_linear(torch.ones(1, 2), torch.tensor([[1.0, 2.0]]), torch.tensor([0.5])).tolist()
    [[3.5]]
    """
    plain = x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu"
    if HAS_ONEDNN and plain and not torch.is_autocast_enabled("cpu"):
        return _linear(x, weight, bias)
    return nn.functional.linear(x, weight, bias)


def _times(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``left @ right.T + bias``, by oneDNN if that pays."""
    if worthwhile(left, right, len(left) * right.numel()):
        return product(left, right, bias)
    return nn.functional.linear(left, right, bias)


@torch.library.custom_op("kdcli::linear", mutates_args=())
def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return _times(x.flatten(0, -2).contiguous(), weight, bias).view(*x.shape[:-1], len(weight))


@_linear.register_fake
def _linear_shape(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))


@torch.library.custom_op("kdcli::linear_over_x", mutates_args=())
def _over_x(grad: Tensor, weight: Tensor) -> Tensor:
    rows = grad.flatten(0, -2).contiguous()
    return _times(rows, weight.T).view(*grad.shape[:-1], weight.shape[1])


@_over_x.register_fake
def _over_x_shape(grad: Tensor, weight: Tensor) -> Tensor:
    return grad.new_empty(*grad.shape[:-1], weight.shape[1])


@torch.library.custom_op("kdcli::linear_over_weight", mutates_args=())
def _compiled_linear_over_weight(grad: Tensor, x: Tensor) -> Tensor:
    rows, seen = grad.flatten(0, -2).contiguous(), x.flatten(0, -2).contiguous()
    return _times(rows.T.contiguous(), seen.T)


@_compiled_linear_over_weight.register_fake
def _over_weight_shape(grad: Tensor, x: Tensor) -> Tensor:
    return grad.new_empty(grad.shape[-1], x.shape[-1])


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _ = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    over_x = _over_x(grad, weight) if ctx.needs_input_grad[0] else None
    over_weight = _compiled_linear_over_weight(grad, x) if ctx.needs_input_grad[1] else None
    over_bias = grad.flatten(0, -2).sum(0) if ctx.needs_input_grad[2] else None
    return over_x, over_weight, over_bias


_linear.register_autograd(_backward, setup_context=_remember)


class OneDNNLinear(nn.Linear):
    """``y = x W' + b``: ``nn.Linear``, to rounding."""

    @no_type_check
    def forward(self, input: Tensor) -> Tensor:
        """Return ``[.., out]`` for ``[.., in]``."""
        if torch.compiler.is_compiling():
            return compiled_linear(input, self.weight, self.bias)
        if _suits(input, self.weight):
            return _Linear.apply(input, self.weight, self.bias)
        return super().forward(input)


class OneDNNConv1D(Conv1D):
    """``y = x W + b``: GPT-2's linear layer, whose weight is ``[in, out]``, to rounding."""

    @no_type_check
    def forward(self, x: Tensor) -> Tensor:
        """Return ``[.., out]`` for ``[.., in]``."""
        if torch.compiler.is_compiling():
            return compiled_linear(x, self.weight.T, self.bias)
        if _suits(x, self.weight):
            return _Linear.apply(x, self.weight.T, self.bias)
        return super().forward(x)


def use_onednn(model: nn.Module) -> int:
    """Turn a model's linear layers into those above; return how many.

    A layer whose weight is no plain parameter, but rounded to fewer bits, stays as it is.

    A layer keeps its parameters, hooks and names; only its class changes, so nothing saved does.

    Args:
        model: changed in place.

    >>> use_onednn(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    1
    """
    kinds = {nn.Linear: OneDNNLinear, Conv1D: OneDNNConv1D}
    found = [module for module in model.modules() if type(module) in kinds and type(module.weight) is nn.Parameter]
    for module in found:
        module.__class__ = kinds[type(module)]
    return len(found)


def _suits(x: Tensor, weight: Tensor) -> bool:
    return (
        worthwhile(x, weight, x.numel() // x.shape[-1] * weight.numel())
        and not torch.is_autocast_enabled("cpu")
        and x.is_contiguous()
        and weight.is_contiguous()
    )


class _Linear(torch.autograd.Function):
    """One differentiable product of rows with a weight ``[out, in]``, contiguous or a transposed view of such."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        rows = product(x.flatten(0, -2), weight, bias)
        return rows.view(*x.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows, seen = grad.reshape(-1, grad.shape[-1]).contiguous(), x.flatten(0, -2)
        over_x = over_weight = over_bias = None
        if ctx.needs_input_grad[0]:
            over_x = product(rows, weight.T).view_as(x)
        if ctx.needs_input_grad[1]:
            over_weight = _over_weight(rows, seen, weight)
        if ctx.needs_input_grad[2]:
            over_bias = rows.sum(0)
        return over_x, over_weight, over_bias


def _over_weight(rows: Tensor, seen: Tensor, weight: Tensor) -> Tensor:
    """Return ``rows.T @ seen``, ``[out, in]``, in the layout of the weight."""
    if weight.is_contiguous():
        return product(rows.T.contiguous(), seen.T)
    return product(seen.T.contiguous(), rows.T).T


# Lets activations that a library writes in several passes run in one.


_SAME_AS_TANH_GELU = (NewGELUActivation, FastGELUActivation)


def fuse_activations(model: nn.Module) -> int:
    """Replace GELUs spelled out in elementary operations by PyTorch's own; return how many.

    The function, 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), stays what it was to rounding.
    Spelled out it makes eight passes over the widest hidden states and keeps five of them for the backward
    pass, a quarter of the time of a GPT-2 trunk. Activations hold no weights, so nothing saved changes.

    Args:
        model: changed in place.

    >>> fuse_activations(nn.Sequential(nn.Linear(2, 2), NewGELUActivation()))
    1
    """
    found = [
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, _SAME_AS_TANH_GELU)
    ]
    for parent, name in found:
        setattr(parent, name, nn.GELU(approximate="tanh"))
    return len(found)
