"""Linear layers inside compiled code: operations of their own, whose library is chosen when they run.

A compiler that saw which library a product goes to would make one version of the code for small products and one for
large ones; as it is, the choice stays with :mod:`kdcli.models.products`.
"""

from typing import Any, no_type_check

import torch
from torch import Tensor, nn

from kdcli.models.products import HAS_ONEDNN, product, worthwhile


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
def _over_weight(grad: Tensor, x: Tensor) -> Tensor:
    rows, seen = grad.flatten(0, -2).contiguous(), x.flatten(0, -2).contiguous()
    return _times(rows.T.contiguous(), seen.T)


@_over_weight.register_fake
def _over_weight_shape(grad: Tensor, x: Tensor) -> Tensor:
    return grad.new_empty(grad.shape[-1], x.shape[-1])


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _ = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    over_x = _over_x(grad, weight) if ctx.needs_input_grad[0] else None
    over_weight = _over_weight(grad, x) if ctx.needs_input_grad[1] else None
    over_bias = grad.flatten(0, -2).sum(0) if ctx.needs_input_grad[2] else None
    return over_x, over_weight, over_bias


_linear.register_autograd(_backward, setup_context=_remember)
