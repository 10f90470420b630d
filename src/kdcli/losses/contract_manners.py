"""Checks of the contract on what a loss is and what it touches, rather than on its numbers."""

import contextlib
import inspect
import io
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcli.losses.base import DistillLoss, Facts, Tokens
from kdcli.losses.broken import require
from kdcli.losses.build import build_objective, spec_of
from kdcli.losses.trial import sample, tokens_of, with_facts


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
