"""The time of matrix products alone: what a piece of work multiplies is recorded, then multiplied again.

Everything else that the work does, its passes over logits, norms, copies, reads of the host, is what lies between its
time and this one.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

_NAMES = (
    "aten.mm", "aten.addmm", "aten.addmm_", "aten.bmm", "aten.baddbmm", "aten.linear", "mkldnn._linear_pointwise",
    "aten._scaled_dot_product_flash_attention_for_cpu", "aten._scaled_dot_product_flash_attention_for_cpu_backward",
)  # fmt: skip


class Products(TorchDispatchMode):
    """Inside its context, records every matrix product and attention: the operation and its tensors' forms.

    >>> with Products() as products:
    ...     _ = torch.ones(4, 3) @ torch.ones(3, 2) + 1
    >>> len(products.calls)
    1
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if str(func).removesuffix(".out").removesuffix(".default").removesuffix(".dtype") in _NAMES:
            self.calls.append((func, tree_map(_form, args), tree_map(_form, kwargs or {})))
        return found

    def seconds(self, repeats: int = 3) -> float:
        """Return the least time that all of them take, one after the other, on random numbers."""
        made: dict[_Form, Tensor] = {}

        def tensors(value: Any) -> Any:
            if not isinstance(value, _Form):
                return value
            if value not in made:
                made[value] = value.make()
            return made[value]

        calls = [(func, tree_map(tensors, args), tree_map(tensors, kwargs)) for func, args, kwargs in self.calls]
        found = []
        with torch.no_grad():
            for _ in range(repeats):
                started = time.perf_counter()
                for func, args, kwargs in calls:
                    func(*args, **kwargs)
                found.append(time.perf_counter() - started)
        return min(found)


class _Form(tuple):
    """Shape, strides and dtype of a tensor."""

    __slots__ = ()

    def make(self) -> Tensor:
        shape, stride, dtype = self
        whole = torch.empty_strided(shape, stride, dtype=dtype)
        return whole.normal_(std=0.02) if dtype.is_floating_point else whole.zero_()


def _form(value: Any) -> Any:
    return _Form((tuple(value.shape), tuple(value.stride()), value.dtype)) if isinstance(value, Tensor) else value
