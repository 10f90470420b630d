"""One-shot sparsity: which weights of a decoder's linear layers become 0, and how the others make up for them.

Of a linear layer with weights W, ``[out, in]``, and the inputs X of rows, ``[tokens, in]``: ``magnitude`` drops the
smallest ``|W_ij|``; ``wanda`` the smallest ``|W_ij| ||X_:j||`` of each output (Sun et al. 2023, arXiv:2306.11695);
``sparsegpt`` the smallest ``W_ij^2 / U_jj^2``, U the upper Cholesky factor of the inverse of ``2 X^T X``, and it moves
the weights behind them so that ``X W^T`` changes least (Frantar and Alistarh 2023, arXiv:2301.00774).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from kdcli.data.batching import Batch
from kdcli.models.family_layout import Family, family_of
from kdcli.models.head import trunk_of
from kdcli.models.internals import Conv1D
from kdcli.models.left_out import LeftOut
from kdcli.students.spec import GROUP, METHODS_ON_ROWS, CutSpec, Pattern

DAMP = 0.01
"""Share of the mean of the diagonal of ``2 X^T X`` that SparseGPT adds to it."""
BLOCK = 128
"""Inputs among whose weights SparseGPT chooses zeros at once."""


@dataclass(frozen=True)
class PrunedLayer:
    """A linear layer after pruning.

    Args:
        name: the module, as in the student.
        weights: how many it has.
        zeros: how many of them are 0.
        error: ``||X W^T - X V^T||^2 / ||X W^T||^2`` of the weights W before and V after; X is the identity where
            the method reads no rows.
    """

    name: str
    weights: int
    zeros: int
    error: float


@torch.no_grad()
def prune(
    model: PreTrainedModel, spec: CutSpec, batches: Sequence[Batch] = (), skipped: LeftOut | None = None
) -> tuple[PrunedLayer, ...]:
    """Set a share of the weights of the linear layers inside a decoder's layers to 0, from the first to the last.

    Each is pruned on what reaches it through those before it, which are pruned already.

    Args:
        model: the student, in eval mode, of a family known here; changed.
        spec: says share, method and pattern.
        batches: rows for the methods that need some, on the model's device.
        skipped: halves of layers that are left out, and have no weights to prune.

    Returns:
        each linear layer, in the order in which they are pruned.
    """
    family, found = family_of(model.config, "the model"), list[PrunedLayer]()
    names = [_linear_layers(model, family, layer, skipped or LeftOut()) for layer in range(_count(model))]
    if spec.method not in METHODS_ON_ROWS:
        return tuple(_prune(model, name, spec, None) for inside in names for name in inside)
    run = _Rows(model, family, batches)
    for number, inside in enumerate(names):
        for together in run.by_input(number, inside):
            gram = run.gram(number, together[0])
            found += [_prune(model, name, spec, gram) for name in together]
        run.go_on(number)
    return tuple(found)


def _count(model: PreTrainedModel) -> int:
    return int(model.config.num_hidden_layers)


def _linear_layers(model: PreTrainedModel, family: Family, number: int, skipped: LeftOut) -> list[str]:
    """Return the names of a layer's linear modules, without those of halves that are left out."""
    gone = [
        *([family.attention] if number in skipped.attention else []),
        *(family.mlp if number in skipped.mlp else ()),
    ]
    prefix = f"{family.layers}{number}"
    inside = model.get_submodule(prefix).named_modules()
    return [
        f"{prefix}.{name}"
        for name, module in inside
        if isinstance(module, nn.Linear | Conv1D) and not any(f"{name}.".startswith(f"{one}.") for one in gone)
    ]


class _Rows:
    """Rows on their way through a decoder, layer by layer.

    Args:
        model: the decoder's model.
        family: its family.
        batches: the rows.
    """

    def __init__(self, model: PreTrainedModel, family: Family, batches: Sequence[Batch]) -> None:
        self._model, self._masks = model, [batch.attention_mask.bool() for batch in batches]
        self._layers = [model.get_submodule(f"{family.layers}{number}") for number in range(_count(model))]
        self._hidden: list[Tensor] = []
        self._calls: list[list[tuple[tuple[Any, ...], dict[str, Any]]]] = [[] for _ in self._layers]
        hooks = [
            layer.register_forward_pre_hook(self._note(number), with_kwargs=True)
            for number, layer in enumerate(self._layers)
        ]
        try:
            for batch in batches:
                trunk_of(model)(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()

    def _note(self, number: int) -> Any:
        """Return a hook that notes how a layer is called; of the hidden states only what the first layer reads."""

        def read(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if number == 0:
                self._hidden.append(args[0] if args else kwargs["hidden_states"])
            rest = {name: value for name, value in kwargs.items() if name != "hidden_states"}
            self._calls[number].append((args[1:], rest))

        return read

    def _run(self, number: int, batch: int) -> Tensor:
        rest, kwargs = self._calls[number][batch]
        out = self._layers[number](self._hidden[batch], *rest, **kwargs)
        return out[0] if isinstance(out, tuple) else out

    def by_input(self, number: int, names: Sequence[str]) -> list[list[str]]:
        """Return a layer's linear modules in the order in which they run, those that read the same numbers together."""
        seen: list[tuple[Tensor, list[str]]] = []

        def note(name: str) -> Any:
            def read(_: nn.Module, args: tuple[Any, ...]) -> None:
                if not seen or seen[-1][0] is not args[0]:
                    seen.append((args[0], []))
                seen[-1][1].append(name)

            return read

        hooks = [self._model.get_submodule(name).register_forward_pre_hook(note(name)) for name in names]
        try:
            self._run(number, 0)
        finally:
            for hook in hooks:
                hook.remove()
        return [together for _, together in seen]

    def gram(self, number: int, name: str) -> Tensor:
        """Return ``X^T X`` of what a linear module of a layer reads at all tokens, ``[in, in]``, in fp64."""
        module, batch = self._model.get_submodule(name), 0
        sums: list[Tensor] = []

        def read(_: nn.Module, args: tuple[Any, ...]) -> None:
            mask = self._masks[batch]
            values = args[0].reshape(*mask.shape, -1)[mask].double()
            sums[:] = [values.T @ values + (sums[0] if sums else 0.0)]

        hook = module.register_forward_pre_hook(read)
        try:
            for batch in range(len(self._masks)):
                self._run(number, batch)
        finally:
            hook.remove()
        return sums[0]

    def go_on(self, number: int) -> None:
        """Carry the rows through a layer."""
        self._hidden = [self._run(number, batch) for batch in range(len(self._hidden))]


def _prune(model: PreTrainedModel, name: str, spec: CutSpec, gram: Tensor | None) -> PrunedLayer:
    module = model.get_submodule(name)
    stored = module.get_parameter("weight")
    weight = stored.T if isinstance(module, Conv1D) else stored
    before = weight.detach().double()
    weight.copy_(pruned(before, spec, gram))
    after = weight.double()
    lost, whole = (_size(one, gram) for one in (before - after, before))
    return PrunedLayer(name, weight.numel(), int((weight == 0).sum()), lost / whole if whole else 0.0)


def _size(weight: Tensor, gram: Tensor | None) -> float:
    """Return ``||X W^T||^2``."""
    return float((weight if gram is None else weight @ gram).mul(weight).sum())


# A single matrix.


def pruned(weight: Tensor, spec: CutSpec, gram: Tensor | None = None) -> Tensor:
    """Return a matrix with a share of its weights at 0.

    Args:
        weight: ``[out, in]``.
        spec: says share, method and pattern.
        gram: ``X^T X`` of its inputs, ``[in, in]``, for the methods that need it.

    >>> from kdcli.students.spec import parse_cut
    >>> pruned(torch.tensor([[1.0, -3.0], [2.0, 0.5]]), parse_cut("cut:sparse=0.5")).tolist()
    [[0.0, -3.0], [2.0, 0.0]]
    """
    share = spec.sparse
    assert share is not None, "asked of a sparse student"
    if spec.method == "magnitude":
        return weight.masked_fill(_zeros(weight.abs(), share, spec.pattern), 0.0)
    assert gram is not None, "measured on rows"
    if spec.method == "wanda":
        scores = weight.abs() * gram.diagonal().sqrt()
        rows = _zeros(scores, share, spec.pattern) if spec.pattern == "2:4" else lowest(scores, _part(share, scores[0]))
        return weight.masked_fill(rows, 0.0)
    return sparsegpt(weight, gram, share, spec.pattern)


def sparsegpt(
    weight: Tensor, gram: Tensor, share: float, pattern: Pattern = "unstructured", *, damp: float = DAMP
) -> Tensor:
    """Return a matrix with a share of its weights at 0, the others moved so that its outputs change least.

    Args:
        weight: ``[out, in]``, fp64.
        gram: ``X^T X`` of its inputs, ``[in, in]``, fp64.
        share: of each block of 128 inputs.
        pattern: where zeros may lie.
        damp: share of the mean of the diagonal of ``2 X^T X`` that is added to it.

    >>> w, h = torch.tensor([[-0.4, 1.0]], dtype=torch.float64), torch.tensor([[1.0, 0.5], [0.5, 2.0]])
    >>> sparsegpt(w, h.double() / 2, 0.5, damp=0.0).tolist()
    [[0.0, 0.9]]
    """
    hessian, weight = 2.0 * gram, weight.clone()
    dead = hessian.diagonal() == 0
    hessian.diagonal()[dead] = 1.0
    weight[:, dead] = 0.0
    hessian.diagonal().add_(damp * hessian.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    upper = torch.linalg.cholesky(inverse, upper=True)
    for start in range(0, weight.shape[1], BLOCK):
        block, here = weight[:, start : start + BLOCK], upper[start : start + BLOCK, start : start + BLOCK]
        size, moved = here.diagonal(), torch.zeros_like(block)
        zero = torch.zeros_like(block, dtype=torch.bool)
        if pattern == "unstructured":
            zero = _zeros((block / size).abs(), share, pattern)
        for place in range(block.shape[1]):
            group = slice(place, place + GROUP)
            if pattern == "2:4" and place % GROUP == 0:
                zero[:, group] = lowest((block[:, group] / size[group]).abs(), GROUP // 2)
            stays = block[:, place].masked_fill(zero[:, place], 0.0)
            moved[:, place] = (block[:, place] - stays) / size[place]
            block[:, place:] -= moved[:, place, None] * here[place, place:]
            block[:, place] = stays
        weight[:, start + BLOCK :] -= moved @ upper[start : start + BLOCK, start + BLOCK :]
    return weight


def _zeros(scores: Tensor, share: float, pattern: Pattern) -> Tensor:
    """Return where the lowest scores of a matrix are, or of each group of inputs, ``[out, in]``."""
    if pattern == "2:4":
        return lowest(scores.reshape(-1, GROUP), GROUP // 2).reshape(scores.shape)
    flat = scores.reshape(1, -1)
    return lowest(flat, _part(share, flat[0])).reshape(scores.shape)


def _part(share: float, scores: Tensor) -> int:
    return round(share * scores.numel())


def lowest(scores: Tensor, count: int) -> Tensor:
    """Return where the lowest scores of each row are; equal ones go in an order that is drawn once, the same for all.

    Weights of few values, as those of a ternary model, are equal by the thousand. In the order of the matrix whole
    rows of it would go first.

    Args:
        scores: ``[rows, n]``.
        count: how many of each row.

    >>> lowest(torch.tensor([[3.0, 1.0, 2.0]]), 2).tolist()
    [[False, True, True]]
    """
    drawn = torch.randperm(scores.shape[1], generator=torch.Generator().manual_seed(0)).to(scores.device)
    order = scores[:, drawn].argsort(dim=1, stable=True)[:, :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, drawn[order], True)
