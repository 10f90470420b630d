"""The check of the contract on what a loss asks of an accelerator: that the host waits for nothing inside a step."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kdcli.losses.base import DistillLoss, Tokens
from kdcli.losses.broken import Broken
from kdcli.losses.rows import without_host_reads
from kdcli.losses.trial import sample, tokens_of

_READS = frozenset({
    "_local_scalar_dense", "is_nonzero", "equal", "allclose", "nonzero", "nonzero_numpy", "argwhere", "masked_select",
    "unique_consecutive", "unique_dim", "_unique", "_unique2", "bincount", "repeat_interleave",
})  # fmt: skip
"""Operations whose answer, or the shape of it, the host must wait for."""

_INDEXED = frozenset({"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"})


class NoHostReads(TorchDispatchMode):
    """Refuses every operation for which the host would wait for an accelerator, wherever the tensors lie."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        name = func.overloadpacket.__name__
        if name in _READS and not (name == "repeat_interleave" and func._overloadname == "self_int"):
            raise Broken(f"the host must wait for what aten.{name} finds; choose by torch.where instead")
        if name in _INDEXED and any(place is not None and place.dtype == torch.bool for place in args[1]):
            raise Broken("the host must wait for how many places a boolean index marks; choose by torch.where instead")
        found = func(*args, **(kwargs or {}))
        given = _devices(args)
        if name in ("_to_copy", "copy_", "_copy_from") and len(given | _devices((found,))) > 1:
            raise Broken(f"numbers move between devices, which the host waits for: {' and '.join(sorted(given))}")
        return found


def _devices(values: tuple) -> set[str]:
    return {value.device.type for value in values if isinstance(value, Tensor) and value.dim()}


def device_clean(loss: DistillLoss) -> None:
    """On an accelerator the host never waits inside a step: no number is read, and all tensors stay on the device.

    Taken on tensors without numbers, as the engine takes a step's value and gradient there.
    """
    data = sample(loss).on(torch.device("meta"))
    with without_host_reads(), NoHostReads():
        facts = dict(data.facts)
        with torch.no_grad():
            if loss.needs().survey != "none":
                facts |= loss.survey(tokens_of(loss, data))
            facts |= loss.plan(dict(facts))
        data = replace(data, facts=facts)
        if loss.needs().logits:
            value_and_grad(loss, tokens_of(loss, data))
        if loss.needs().features:
            loss.feature_parts(tokens_of(loss, data, gradient=True))


def value_and_grad(loss: DistillLoss, tok: Tokens) -> tuple[dict[str, Tensor], Tensor]:
    """Return the parts and the gradient of their sum: the closed form, or autograd where there is none."""
    with torch.no_grad():
        closed = loss.parts_and_grad(tok)
    if closed is not None:
        return closed
    student = tok.student.detach().requires_grad_()
    parts = loss.parts(replace(tok, student=student))
    (grad,) = torch.autograd.grad(torch.stack([part.sum() for part in parts.values()]).sum(), student)
    return parts, grad
