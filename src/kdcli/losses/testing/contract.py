"""The contract of losses as checks that run on any loss, plug-ins included."""

import contextlib
import inspect
import io
import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kdcli.errors import InputError
from kdcli.losses.base import DistillLoss, Facts, Tokens
from kdcli.losses.build import build_objective
from kdcli.losses.rows import without_host_reads
from kdcli.losses.samples import sample, tokens_of, with_facts
from kdcli.losses.testing import numbers
from kdcli.losses.testing.numbers import ContractViolation, require
from kdcli.registry.build import spec_of
from kdcli.text import one_line, typed

# The check of the contract on what a loss asks of an accelerator: that the host waits for nothing inside a step.


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
        if name in _READS and func is not torch.ops.aten.repeat_interleave.self_int:
            raise ContractViolation(f"the host must wait for what aten.{name} finds; choose by torch.where instead")
        if name in _INDEXED and any(place is not None and place.dtype == torch.bool for place in args[1]):
            raise ContractViolation(
                "the host must wait for how many places a boolean index marks; choose by torch.where instead"
            )
        found = func(*args, **(kwargs or {}))
        given = _devices(args)
        if name in ("_to_copy", "copy_", "_copy_from") and len(given | _devices((found,))) > 1:
            raise ContractViolation(
                f"numbers move between devices, which the host waits for: {' and '.join(sorted(given))}"
            )
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


# Checks of the contract on what a loss is and what it touches, rather than on its numbers.


def documented(loss: DistillLoss) -> None:
    """Formula, reference, cost, a docstring with an example, a description of every option."""
    kind = type(loss)
    for name in ("name", "formula", "reference", "cost"):
        text = getattr(kind, name, None)
        require(isinstance(text, str) and bool(text.strip()), f"the class has no {name}")
    require(bool(kind.__dict__.get("__doc__")), "the class has no docstring")
    require(">>>" in (inspect.getdoc(kind) or ""), "the docstring has no example (>>>)")
    for name, option in kind.model_fields.items():
        require(bool(option.description), f"the option {name} has no description")


def round_trip(loss: DistillLoss) -> None:
    """The loss survives JSON, pickle, hashing and its spec string."""
    require(hash(loss) == hash(loss.model_copy()), "equal losses have different hashes")
    require(type(loss).model_validate_json(loss.model_dump_json()) == loss, "it differs after a JSON round trip")
    require(pickle.loads(pickle.dumps(loss)) == loss, "it differs after pickling")
    text = spec_of(loss)
    require(spec_of(build_objective(text)) == text, f"its spec string {text} does not build it again")


def facts(loss: DistillLoss) -> str | None:
    """Survey and plan answer one number per token, without gradient."""
    data = sample(loss)
    if loss.needs().survey == "none":
        _check_facts(loss.plan(dict(data.facts)), len(data.labels), "plan")
        return "no survey"
    _check_facts(loss.survey(tokens_of(loss, data)), len(data.labels), "survey")
    surveyed = with_facts(loss, data)
    return _check_facts(loss.plan(dict(surveyed.facts)), len(data.labels), "plan")


def _check_facts(found: Facts, count: int, where: str) -> None:
    require(isinstance(found, Mapping), f"{where} must return a mapping, got {type(found).__name__}")
    for name, value in found.items():
        shape = tuple(getattr(value, "shape", ()))
        require(shape == (count,), f"{where}: {name} must hold one number per token, ({count},), got {shape}")
        require(not value.requires_grad, f"{where}: {name} carries a gradient")


def answers(loss: DistillLoss) -> None:
    """The loss runs on ordinary tokens."""
    loss.token_loss(tokens_of(loss, with_facts(loss, sample(loss)), gradient=True))


def surroundings_kept(loss: DistillLoss) -> None:
    """Random state, default dtype, threads and gradient mode stay as they are; nothing is printed.

    What the loss raises is left to :func:`answers`.
    """
    printed = io.StringIO()
    with surroundings_restored() as before:
        with contextlib.redirect_stdout(printed), contextlib.suppress(Exception, SystemExit):
            answers(loss)
            tok = tokens_of(loss, with_facts(loss, sample(loss)))
            if loss.needs().logits:
                loss.parts(tok)
            loss.feature_parts(tok)
        after = _surroundings()
    for name, value in before.items():
        require(value == after[name], f"it changed {name}")
    require(not printed.getvalue(), "it printed to stdout")


@contextlib.contextmanager
def surroundings_restored() -> Iterator[dict[str, Any]]:
    """Put everything global that a loss may change back as it was."""
    before = _surroundings()
    try:
        yield before
    finally:
        torch.set_rng_state(torch.frombuffer(bytearray(before["torch's random state"]), dtype=torch.uint8))
        np.random.set_state(pickle.loads(before["numpy's random state"]))
        torch.set_default_dtype(before["the default dtype"])
        torch.set_num_threads(before["the number of threads"])
        torch.set_grad_enabled(before["the gradient mode"])


def _surroundings() -> dict[str, Any]:
    return {
        "torch's random state": torch.get_rng_state().numpy().tobytes(),
        "numpy's random state": pickle.dumps(np.random.get_state()),
        "the default dtype": torch.get_default_dtype(),
        "the number of threads": torch.get_num_threads(),
        "the gradient mode": torch.is_grad_enabled(),
    }


def inputs_kept(loss: DistillLoss) -> None:
    """Logits, labels and facts stay as they were, and the teacher gets no gradient."""
    data = with_facts(loss, sample(loss))
    calls = {"survey": loss.survey, "token_loss": loss.token_loss, "parts": loss.parts}
    for name, call in {**calls, "feature_parts": loss.feature_parts}.items():
        if (name == "survey" and loss.needs().survey == "none") or (name == "parts" and not loss.needs().logits):
            continue
        tok, untouched = tokens_of(loss, data), tokens_of(loss, data)
        with torch.set_grad_enabled(name != "survey"):
            call(tok)
        _compare(tok, untouched, name)


def _compare(tok: Tokens, untouched: Tokens, where: str) -> None:
    for part in fields(Tokens):
        one, other = getattr(tok, part.name), getattr(untouched, part.name)
        if isinstance(one, Tensor):
            require(torch.equal(one, other), f"{where} changed the {part.name} in place")
    for name, value in untouched.facts.items():
        require(name in tok.facts and torch.equal(tok.facts[name], value), f"{where} changed the fact {name} in place")
    if tok.features is not None and untouched.features is not None:
        for side in ("student", "teacher"):
            pairs = zip(getattr(tok.features, side).tensors, getattr(untouched.features, side).tensors, strict=True)
            require(all(torch.equal(*pair) for pair in pairs), f"{where} changed the {side}'s features in place")
    require(tok.teacher is None or not tok.teacher.requires_grad, f"{where} gave the teacher a gradient")


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Args:
        name: of the check.
        passed: whether the loss keeps this part of the contract.
        detail: what is wrong; for a check that passed, empty or why it does not apply.
    """

    name: str
    passed: bool
    detail: str = ""


@dataclass(frozen=True)
class Check:
    """One part of the contract.

    Args:
        name: short, as printed.
        run: raises Broken where the loss breaks it; returns a note or nothing.
        after: checks without which this one means nothing; it is left out when one of them failed.
    """

    name: str
    run: Callable[[DistillLoss], str | None]
    after: tuple[str, ...] = ()


_VALUES = ("answers", "shape", "float32", "finite", "inputs kept", "repeatable")
_BOTH = (*_VALUES, "gradient")
_ALONE = (*_BOTH, "independent", "order")

CHECKS = (
    Check("documented", documented),
    Check("round trip", round_trip),
    Check("surroundings kept", surroundings_kept),
    Check("facts", facts, ("surroundings kept",)),
    Check("answers", answers, ("facts",)),
    Check("shape", numbers.shape, ("answers",)),
    Check("inputs kept", inputs_kept, ("shape",)),
    Check("float32", numbers.float32, ("shape",)),
    Check("finite", numbers.finite, ("float32",)),
    Check("repeatable", numbers.repeatable, ("finite",)),
    Check("half precision", numbers.half_precision, _VALUES),
    Check("gradient", numbers.gradient, _VALUES),
    Check("independent", numbers.independent, _BOTH),
    Check("order", numbers.order, _BOTH),
    Check("chunks", numbers.chunks, _ALONE),
    Check("splits", numbers.splits, (*_ALONE, "chunks")),
    Check("device clean", device_clean, _BOTH),
    Check("large logits", numbers.large_logits, _ALONE),
    Check("filtered logits", numbers.filtered_logits, _ALONE),
    Check("equal models", numbers.equal_models, _ALONE),
    Check("divergence", numbers.divergence, (*_ALONE, "equal models")),
    Check("temperatures", numbers.temperatures, _ALONE),
    Check("parts", numbers.parts, _ALONE),
    Check("closed form", numbers.closed_form, (*_ALONE, "parts")),
)


def check_loss(loss: DistillLoss) -> list[Finding]:
    """Run the contract's checks on a loss.

    A check of what another one has already found missing is left out, so each mistake is
    reported once. What the loss raises, ``sys.exit`` included, is a finding.

    Args:
        loss: with the options to check it at.

    Returns:
        one finding per check that ran, in order.

    >>> from kdcli.losses.build import build_objective
    >>> all(finding.passed for finding in check_loss(build_objective("fkl")))
    True
    """
    findings: list[Finding] = []
    kept: set[str] = set()
    with surroundings_restored():
        for check in CHECKS:
            if kept.issuperset(check.after):
                finding = _run(check, loss)
                findings.append(finding)
                if finding.passed:
                    kept.add(check.name)
    return findings


def try_loss(loss: DistillLoss, name: str) -> None:
    """Refuse a plug-in that fails on a few made-up tokens, before it is trained with.

    Args:
        loss: with its options.
        name: how it was named.

    Raises:
        InputError: PLUG-11, what the first of the checks that a training cannot do without has found.
    """
    with surroundings_restored():
        for check in CHECKS:
            found = _run(check, loss) if check.name in ("facts", "answers", "shape") else None
            if found is not None and not found.passed:
                fix = f"correct the plug-in; kd losses check {typed(name)} says more"
                raise InputError("PLUG-11", f"{check.name}: {found.detail}", where=f"loss {name}", fix=fix)


def _run(check: Check, loss: DistillLoss) -> Finding:
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            note = check.run(loss)
    except ContractViolation as broken:
        return Finding(check.name, False, str(broken))
    except (Exception, SystemExit) as error:
        first = (str(error).splitlines() or [""])[0]
        return Finding(check.name, False, f"raised {type(error).__name__}: {one_line(first)}")
    return Finding(check.name, True, note or "")
