"""The gradient of an objective over the logits of a few tokens: closed form, or autograd."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from kdcli.errors import InputError
from kdcli.losses.base import DistillLoss, Tokens
from kdcli.models.head import Head


def block_gradient(loss: DistillLoss, tok: Tokens, head: Head, wanted: bool) -> tuple[dict[str, Tensor], Tensor | None]:
    """Return the parts of a few tokens and, if wanted, the gradient over the head product.

    The objective's closed form is taken where it offers one, autograd on these tokens otherwise.
    """
    if not wanted:
        return per_token(loss, loss.parts(tok), tok), None
    capped = tok.student.clone() if head.softcap is not None else tok.student
    closed = loss.parts_and_grad(tok)
    if closed is None:
        closed = _by_autograd(loss, tok)
    values, grad = closed
    return per_token(loss, values, tok), head.grad_through_(grad, capped)


def _by_autograd(loss: DistillLoss, tok: Tokens) -> tuple[dict[str, Tensor], Tensor]:
    with torch.enable_grad():
        student = tok.student.detach().requires_grad_()
        parts = per_token(loss, loss.parts(replace(tok, student=student)), tok)
        total = torch.stack([part.sum() for part in parts.values()]).sum()
        (grad,) = torch.autograd.grad(total, student)
    return {name: part.detach() for name, part in parts.items()}, grad


def per_token(loss: DistillLoss, parts: Mapping[str, Tensor], tok: Tokens) -> dict[str, Tensor]:
    """Hold a guest to its contract: one floating-point number per token.

    Raises:
        InputError: PLUG-04, with the shape it gave.
    """
    for value in parts.values():
        got = f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        if not isinstance(value, Tensor) or value.shape != tok.labels.shape or not value.is_floating_point():
            raise InputError(
                "PLUG-04",
                f"expected one number per token, shape {tuple(tok.labels.shape)}, got {got}",
                where=f"loss {loss.name}",
                fix="return [t] values, not their mean; kd losses check finds such mistakes",
            )
    return dict(parts)
