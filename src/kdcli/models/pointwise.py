"""An objective's value and gradient over a chunk's logits as compiled code: one or two kernels instead of dozens.

The objective runs once on tensors that only have shapes; what it asked of them is the code, with the number of tokens
left open. So every objective can be compiled, guests and objectives made of objectives among them, whether its
gradient is in closed form or by autograd; one that reads numbers on the host cannot, nor one that changes over the run.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch._dynamo import maybe_mark_dynamic
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_aggregate

from kdcli.errors import KDError
from kdcli.losses.base import DistillLoss, Tokens, widen
from kdcli.losses.rows import without_host_reads
from kdcli.losses.topk import TopKWithTail
from kdcli.models.block import block_gradient
from kdcli.models.head import Head
from kdcli.text import one_line

BACKEND = "inductor"
_OPEN = 4
"""Parts of a key of code for any number of tokens; one for a single number has that besides."""

_VERSIONS = 8
"""Versions of the code of an objective that asks for the number of tokens, one for each number."""

_SIZES = (7, 11, 13, 17, 19, 23, 29)
"""Numbers of tokens to run an objective on; one that is no other size of it stands for any number."""


class _Share(float):
    """A share of the run done that records whether it was read."""

    looked_at = False


def _looking(name: str) -> Callable[..., Any]:
    def look(self: _Share, *others: Any) -> Any:
        self.looked_at = True
        return getattr(float, name)(float(self), *others)

    return look


for _name in (
    "add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "floordiv", "rfloordiv", "mod", "rmod", "pow",
    "rpow", "neg", "pos", "abs", "lt", "le", "gt", "ge", "eq", "ne", "bool", "int", "round", "hash", "repr", "format",
):  # fmt: skip
    setattr(_Share, f"__{_name}__", _looking(f"__{_name}__"))


_Key: TypeAlias = tuple[Any, ...]
"""An objective, what its head does to the gradient, and the layout of what it is given; all of it can be hashed."""


@dataclass
class _Code:
    """Compiled code, and what its answers are called: parts first, then what is logged."""

    run: Callable[..., tuple[Tensor, ...]]
    parts: list[str]
    logged: list[str]


class Pointwise:
    """Compiled code by objective and by what it is given; kept for the life of a process.

    Args:
        tell: called once per objective that runs without a compiler, with the reason.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell, self._code = tell, dict[_Key, _Code | None]()
        self._counted: dict[_Key, int] = {}

    def __call__(self, loss: DistillLoss, tok: Tokens, head: Head, into: Tensor) -> dict[str, Tensor] | None:
        """Return the parts of some tokens and write the gradient over the head product into a buffer.

        Args:
            loss: the objective.
            tok: two tokens or more, their logits in the head product's dtype.
            head: whose product the student's logits come from.
            into: ``[t, v]``; the student's logits themselves, or a buffer of another dtype.

        Returns:
            the parts, each ``[t]``; None if there is no code, and nothing was written then.
        """
        given = _given(tok, into)
        key, count = (loss, head.scale, head.softcap, _layout(given)), len(tok.labels)
        if key not in self._code:
            self._code[key] = self._made(loss, tok, head, given, None)
        if key in self._counted:
            open_key, key = key, (*key, count)
            if key not in self._code:
                self._counted[open_key] += 1
                few = self._counted[open_key] <= _VERSIONS
                self._code[key] = self._made(loss, tok, head, given, count) if few else None
        code = self._code[key]
        if code is None:
            return None
        try:
            for value in given.values() if len(key) == _OPEN else ():
                maybe_mark_dynamic(value, 0)
            with torch.compiler.set_stance("default"):
                found = code.run(*given.values())
        except KDError:
            raise
        except Exception as error:
            self._code[key] = self._without(loss, error)
            return None
        tok.logged.update(zip(code.logged, found[len(code.parts) :], strict=True))
        return dict(zip(code.parts, found, strict=False))

    def _made(
        self, loss: DistillLoss, tok: Tokens, head: Head, given: dict[str, Tensor], tokens: int | None
    ) -> _Code | None:
        sizes = {size for value in given.values() for size in value.shape[1:]}
        count = tokens or next(size for size in _SIZES if size not in sizes)
        shapes = [value if tokens else value.new_empty((count, *value.shape[1:])) for value in given.values()]
        share, parts, logged = _Share("nan"), list[str](), list[str]()

        def run(*tensors: Tensor) -> tuple[Tensor, ...]:
            seen = _tokens(dict(zip(given, tensors, strict=True)), tok, share)
            own = seen.student
            found, grad = block_gradient(loss, replace(seen, student=widen(own).clone()), head, True)
            assert grad is not None, "a gradient is wanted"
            (tensors[-1] if "into" in given else own).copy_(grad)
            parts[:], logged[:] = found, seen.logged
            return (*found.values(), *seen.logged.values())

        try:
            with without_host_reads(), torch.no_grad():
                graph = make_fx(run, tracing_mode="fake" if tokens else "symbolic")(*shapes)
        except KDError:
            raise
        except Exception as error:
            return self._without(loss, error)
        if share.looked_at or _holds_nan(graph):
            self._tell(f"{loss.name} changes over the run, so its pointwise part is not compiled")
            return None
        if tokens is None and _asks_how_many(graph):
            self._counted[(loss, head.scale, head.softcap, _layout(given))] = 0
            return None
        return _Code(torch.compile(graph, backend=BACKEND), parts, logged)

    def _without(self, loss: DistillLoss, error: Exception) -> None:
        said = one_line(" ".join(str(error).split()), 160)
        self._tell(f"the pointwise part of {loss.name} is not compiled: {type(error).__name__}: {said}")


def _layout(given: dict[str, Tensor]) -> Hashable:
    return tuple((name, value.dtype, value.device, value.shape[1:]) for name, value in given.items())


def _given(tok: Tokens, into: Tensor) -> dict[str, Tensor]:
    """Return all tensors that an objective sees of some tokens, by name, the buffer last if it is one of its own."""
    given = {"labels": tok.labels, "student": tok.student}
    if tok.teacher is not None:
        given["teacher"] = tok.teacher
    if tok.coarse is not None:
        given |= {"coarse/ids": tok.coarse.ids, "coarse/log_probs": tok.coarse.log_probs}
    given |= {f"fact/{name}": value for name, value in sorted(tok.facts.items())}
    return given if into is tok.student else {**given, "into": into}


def _tokens(given: dict[str, Tensor], like: Tokens, progress: float) -> Tokens:
    facts = {name.removeprefix("fact/"): value for name, value in given.items() if name.startswith("fact/")}
    coarse = TopKWithTail(given["coarse/ids"], given["coarse/log_probs"]) if like.coarse is not None else None
    teacher = widen(given["teacher"]).clone() if like.teacher is not None else None
    return Tokens(given["labels"], given["student"], teacher, facts, coarse=coarse, progress=progress)


def _holds_nan(graph: GraphModule) -> bool:
    """Return whether the share of the run done has become a number of the code: it was not one."""
    found = [False]

    def look(value: Any) -> Any:
        found[0] |= isinstance(value, float) and value != value
        return value

    for node in graph.graph.nodes:
        map_aggregate((node.args, node.kwargs), look)
    return found[0]


def _asks_how_many(graph: GraphModule) -> bool:
    """Return whether the objective asked for the number of tokens as a number, as ``len`` does: code for that alone."""
    first = next(iter(graph.graph.nodes)).meta["val"].shape[0]
    symbols = graph.shape_env
    assert symbols is not None, "sizes were symbols"
    symbol = first.node.expr if isinstance(first, torch.SymInt) else None
    return symbol is None or not symbol.free_symbols or symbol in symbols.replacements
