"""Checks of the contract on the numbers that a loss returns."""

from dataclasses import replace

import torch
from pydantic import ValidationError
from torch import Tensor

from kdcli.losses.base import DistillLoss
from kdcli.losses.composite import losses_inside
from kdcli.losses.samples import Sample, sample, tokens_of, values, values_and_grad, with_facts

# What a check of the contract raises.


class ContractViolation(Exception):
    """A loss breaks the contract; says how, as *expected X, got Y*."""


def require(kept: bool, detail: str) -> None:
    """Raise unless the contract is kept.

    Raises:
        Broken: it is not.
    """
    if not kept:
        raise ContractViolation(detail)


# Finds the objectives that vanish when the student equals the teacher.


def zero_at_equal(loss: DistillLoss) -> bool:
    """Whether a loss is never negative, and 0 where student and teacher are equal.

    Every divergence promises so, a guest's too; the cross-entropy with the teacher, built on the
    same frame, keeps the teacher's entropy.

    >>> from kdcli.losses.build import build_objective
    >>> zero_at_equal(build_objective("0.5*fkl+0.5*rkl")), zero_at_equal(build_objective("0.5*ce+0.5*fkl"))
    (True, False)
    """
    return loss.zero_at_equal and all(map(zero_at_equal, losses_inside(loss)))


_TEMPERATURES = (1e-2, 0.1, 10.0, 1e4)
_EXACT = {torch.float64: 1e-9, torch.float32: 1e-4}


def shape(loss: DistillLoss) -> None:
    """One number per token, for many tokens and for one."""
    for tokens in (9, 1):
        found = loss.token_loss(tokens_of(loss, with_facts(loss, sample(loss, tokens=tokens)), gradient=True))
        require(isinstance(found, Tensor), f"token_loss must return a tensor, got {type(found).__name__}")
        expected, got = (tokens,), tuple(found.shape)
        require(got == expected, f"token_loss must return one number per token, {expected}, got {got}")


def float32(loss: DistillLoss) -> None:
    """The values are float32, from float32 and from bfloat16 logits."""
    for dtype in (torch.float32, torch.bfloat16):
        found = loss.token_loss(tokens_of(loss, with_facts(loss, sample(loss).to(dtype)), gradient=True)).dtype
        require(found == torch.float32, f"from {dtype} logits the values must be torch.float32, got {found}")


def finite(loss: DistillLoss) -> None:
    """Ordinary logits give finite values."""
    _require_finite(values(loss, with_facts(loss, sample(loss))), "a value")


def repeatable(loss: DistillLoss) -> None:
    """The same tokens give the same values, bit for bit."""
    data = with_facts(loss, sample(loss))
    require(torch.equal(values(loss, data), values(loss, data)), "two calls on the same tokens differ")


def half_precision(loss: DistillLoss) -> None:
    """Bfloat16 logits are widened before anything else: same values as from the widened logits."""
    half = sample(loss).to(torch.bfloat16)
    found, expected = (values(loss, with_facts(loss, data)) for data in (half, half.to(torch.float32)))
    require(torch.equal(found, expected), "bfloat16 logits must be widened to float32 before any arithmetic")


def gradient(loss: DistillLoss) -> None:
    """A finite gradient reaches the student."""
    data = with_facts(loss, sample(loss))
    found = loss.token_loss(tokens_of(loss, data, gradient=True))
    require(found.requires_grad, "no gradient reaches the student")
    _, grad = values_and_grad(loss, data)
    _require_finite(grad, "a gradient")
    require(bool(grad.any()), "the gradient is zero everywhere")


def independent(loss: DistillLoss) -> None:
    """A token's value and gradient do not depend on the other tokens, given the facts."""
    data, other = with_facts(loss, sample(loss)), sample(loss, seed=1)
    keep = torch.arange(len(data.labels)) % 2 == 0
    changed = data.mixed(keep, other)
    one, two = values_and_grad(loss, data), values_and_grad(loss, changed)
    _require_close(one[0][keep], two[0][keep], "a token's value changes with other tokens")
    _require_close(one[1][keep], two[1][keep], "a token's gradient changes with other tokens")


def order(loss: DistillLoss) -> None:
    """Tokens in another order give the same values in that order."""
    data = with_facts(loss, sample(loss))
    turned = torch.arange(len(data.labels)).roll(4).flip(0)
    one, two = values_and_grad(loss, data), values_and_grad(loss, data.rows(turned))
    _require_close(one[0][turned], two[0], "values change with the order of tokens")
    _require_close(one[1][turned], two[1], "gradients change with the order of tokens")


def chunks(loss: DistillLoss) -> None:
    """Chunks of one token, of four and of all give the same values and gradients."""
    data = sample(loss).to(torch.float64)
    whole = values_and_grad(loss, with_facts(loss, data))
    for chunk in (1, 4):
        found = values_and_grad(loss, with_facts(loss, data, chunk), chunk)
        for one, two, what in zip(whole, found, ("values", "gradients"), strict=True):
            _require_close(one, two, f"{what} change when {chunk} tokens are taken at a time")


def splits(loss: DistillLoss) -> str | None:
    """Two micro-batches give the sum that one gives; a loss that surveys or plans its micro-batch says otherwise."""
    data = sample(loss)
    if loss.needs().survey != "none" or len(with_facts(loss, data).facts) > len(data.facts):
        return "it looks at its whole micro-batch, so its size counts"
    data = sample(loss).to(torch.float64)
    whole = values(loss, with_facts(loss, data)).sum()
    rows = torch.arange(len(data.labels)).split(4)
    split = torch.stack([values(loss, with_facts(loss, data.rows(part))).sum() for part in rows]).sum()
    return _require_close(whole, split, "the sum changes when the micro-batch is split")


def large_logits(loss: DistillLoss) -> None:
    """Logits of +-200 give finite values and gradients."""
    _require_finite_run(loss, sample(loss).map(lambda logits: 200.0 * torch.sign(logits)), "with logits of +-200")


def filtered_logits(loss: DistillLoss) -> None:
    """Entries at minus infinity on both sides do no harm and get no gradient."""
    data = sample(loss).map(lambda logits: torch.cat((logits[:, :-3], torch.full_like(logits[:, -3:], -torch.inf)), 1))
    grad = _require_finite_run(loss, data, "with logits at minus infinity")
    require(not grad[:, -3:].any(), "an entry at minus infinity gets a gradient")


def equal_models(loss: DistillLoss) -> None:
    """A student equal to its teacher gives finite values and gradients."""
    data = sample(loss)
    _require_finite_run(loss, data.equal(loss), "with a student equal to its teacher")


def divergence(loss: DistillLoss) -> str | None:
    """A divergence is never negative, and 0 with a gradient of 0 where the models are equal."""
    if not zero_at_equal(loss):
        return "not a divergence"
    for distance in (3.0, 1e-3, 1e-6):
        data = sample(loss)
        near = replace(data, teacher=data.student + distance * sample(loss, scale=1.0, seed=2).student)
        least = values(loss, with_facts(loss, near)).min().item()
        require(least >= 0.0, f"a divergence is at least 0, got {least:.3g}")
    data = sample(loss)
    value, grad = values_and_grad(loss, with_facts(loss, replace(data, teacher=data.student)))
    require(value.abs().max().item() <= 1e-6, f"equal models must give 0, got {value.abs().max().item():.3g}")
    return require(grad.abs().max().item() <= 1e-6, f"equal models must give gradient 0, got {grad.abs().max():.3g}")


def temperatures(loss: DistillLoss) -> str | None:
    """Temperatures from 0.01 to 10,000 give finite values and gradients."""
    if "temperature" not in type(loss).model_fields:
        return "no option temperature"
    given = {name: getattr(loss, name) for name in type(loss).model_fields}
    try:
        heated = {tau: type(loss)(**{**given, "temperature": tau}) for tau in _TEMPERATURES}
    except ValidationError:
        return "refused together with its other options"
    for tau, hot in heated.items():
        _require_finite_run(hot, sample(loss), f"at temperature {tau:g}")
    return None


def parts(loss: DistillLoss) -> None:
    """The named parts hold one number per token each and add up to the loss."""
    data = with_facts(loss, sample(loss).to(torch.float64))
    on_logits = loss.parts(tokens_of(loss, data)) if loss.needs().logits else {}
    found = on_logits | loss.feature_parts(tokens_of(loss, data))
    for name, part in found.items():
        require(tuple(part.shape) == tuple(data.labels.shape), f"the part {name} has shape {tuple(part.shape)}")
    total = torch.stack(list(found.values())).sum(0)
    _require_close(values(loss, data), total, "the parts do not add up to the loss")


def closed_form(loss: DistillLoss) -> str | None:
    """Where the loss takes its gradient itself, it equals autograd's."""
    if loss.parts_and_grad(tokens_of(loss, with_facts(loss, sample(loss)))) is None:
        return "none; autograd is used"
    filtered = sample(loss, seed=3)
    filtered.student[2:5, -2:] = filtered.teacher[2:5, -2:] = -torch.inf
    peaked = sample(loss, scale=15.0, seed=4)
    for data in (sample(loss), filtered, peaked, sample(loss, tokens=1)):
        for dtype in (torch.float64, torch.float32):
            _compare_closed(loss, data.to(dtype), dtype)
    return None


def _compare_closed(loss: DistillLoss, data: Sample, dtype: torch.dtype) -> None:
    data = replace(with_facts(loss, data), features=None)  # closed forms are of the terms on logits
    closed = loss.parts_and_grad(tokens_of(loss, data))
    if closed is None:
        return
    found, grad = closed
    names, expected = list(found), list(loss.parts(tokens_of(loss, data)))
    require(names == expected, f"its parts are {names}, those of parts() {expected}")
    value, slope = values_and_grad(loss, data)
    tolerance = _EXACT[dtype]
    _require_close(torch.stack(list(found.values())).sum(0), value, "its values differ from token_loss", tolerance)
    _require_close(grad, slope, "its gradient differs from autograd's", tolerance)


def _require_finite_run(loss: DistillLoss, data: Sample, when: str) -> Tensor:
    value, grad = values_and_grad(loss, with_facts(loss, data))
    _require_finite(value, f"{when}, a value")
    _require_finite(grad, f"{when}, a gradient")
    return grad


def _require_finite(found: Tensor, what: str) -> None:
    bad = found[~torch.isfinite(found)]
    require(len(bad) == 0, f"{what} is {bad[0].item() if len(bad) else 0}")


def _require_close(one: Tensor, two: Tensor, detail: str, tolerance: float = 1e-5) -> None:
    size = one.abs().max().clamp(min=1.0)
    gap = ((one - two).abs().max() / size).item()
    require(gap <= tolerance, f"{detail} (by {gap:.2g})")
