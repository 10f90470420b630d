"""Linear layers whose large fp32 products go where they are fastest.

What a compiler reads carries no checks of types at run time: it would have to compile them too.
"""

from typing import Any, no_type_check

import torch
from torch import Tensor, nn

from kdcli.models.compiled_linear import compiled_linear
from kdcli.models.internals import Conv1D
from kdcli.models.products import product, worthwhile


class QuickLinear(nn.Linear):
    """``y = x W' + b``: ``nn.Linear``, to rounding."""

    @no_type_check
    def forward(self, input: Tensor) -> Tensor:
        """Return ``[.., out]`` for ``[.., in]``."""
        if torch.compiler.is_compiling():
            return compiled_linear(input, self.weight, self.bias)
        if _suits(input, self.weight):
            return _Linear.apply(input, self.weight, self.bias)
        return super().forward(input)


class QuickConv1D(Conv1D):
    """``y = x W + b``: GPT-2's linear layer, whose weight is ``[in, out]``, to rounding."""

    @no_type_check
    def forward(self, x: Tensor) -> Tensor:
        """Return ``[.., out]`` for ``[.., in]``."""
        if torch.compiler.is_compiling():
            return compiled_linear(x, self.weight.T, self.bias)
        if _suits(x, self.weight):
            return _Linear.apply(x, self.weight.T, self.bias)
        return super().forward(x)


def quicken(model: nn.Module) -> int:
    """Turn a model's linear layers into those above; return how many.

    A layer whose weight is no plain parameter, but rounded to fewer bits, stays as it is.

    A layer keeps its parameters, hooks and names; only its class changes, so nothing saved does.

    Args:
        model: changed in place.

    >>> quicken(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    1
    """
    kinds = {nn.Linear: QuickLinear, Conv1D: QuickConv1D}
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
