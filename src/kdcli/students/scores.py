"""Scores that say which parts of a teacher stay: of layers, groups of heads, feed-forward units, hidden dimensions.

Of weights: ``magnitude``, the root of the sum of squares over the matrices' rows and columns that belong to a part.
On rows: ``activation`` (Minitron, Muralidharan et al. 2024, arXiv:2407.14679), ``taylor`` (LLM-Pruner, Ma et al. 2023,
arXiv:2305.11627), ``influence`` (ShortGPT, Men et al. 2024, arXiv:2403.03853) and ``loss``, what leaving a layer out
costs. ``first``, ``spaced`` and ``random`` are what others must beat.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from kdcli.data.batching import IGNORED, Batch, collate, micro_batches
from kdcli.data.tokenize import TokenDataset
from kdcli.models.family_layout import Axis, Form, axes_of, family_of, form_of
from kdcli.models.head import trunk_of
from kdcli.students.spec import CutSpec, Half, Score

BUDGET = 4096
"""Padded tokens of a batch that scores are taken on."""
_HEAD_AXES = ("query", "key", "query-key-value", "head-by-head")


@dataclass(frozen=True)
class Scores:
    """One number for each part of a model; the higher ones stay.

    Args:
        layers: ``[layers]``; empty where they are not scored.
        groups: ``[layers, groups]``.
        ffn: ``[layers, units]``.
        width: ``[width]``.
    """

    layers: Tensor
    groups: Tensor
    ffn: Tensor
    width: Tensor


def score(model: PreTrainedModel, spec: CutSpec, batches: Sequence[Batch] = (), where: str = "the model") -> Scores:
    """Score the parts of a model as a spec asks.

    Args:
        model: the teacher, in eval mode; what is changed is put back.
        spec: names the scores.
        batches: rows for the scores that need some, on the model's device.
        where: the teacher, for messages.
    """
    empty = torch.zeros(0)
    form = form_of(model.config, where)
    parts = _of_parts(model, spec, batches, form) if spec.scores_parts else None
    layers = _of_layers(model, spec, batches, form) if spec.scores_layers else empty
    return Scores(layers, *(parts or (empty, empty, empty)))


def batches_of(rows: TokenDataset, count: int, pad_id: int, device: torch.device) -> list[Batch]:
    """Return the first so many rows as padded batches, in an order that their lengths decide."""
    chosen = range(min(count, len(rows)))
    return [collate(rows.examples, cut, pad_id).to(device) for cut in micro_batches(chosen, rows.lengths, BUDGET)]


def _of_parts(model: PreTrainedModel, spec: CutSpec, batches: Sequence[Batch], form: Form) -> tuple[Tensor, ...]:
    """Return the scores of groups ``[layers, groups]``, units ``[layers, units]`` and hidden dimensions ``[width]``."""
    shapes = (form.layers, form.groups), (form.layers, form.ffn), (form.width,)
    if spec.by == "first":
        return tuple(torch.arange(shape[-1], 0, -1.0).expand(shape).clone() for shape in shapes)
    if spec.by == "random":
        generator = torch.Generator().manual_seed(spec.seed)
        return tuple(torch.rand(shape, generator=generator) for shape in shapes)
    if spec.by == "activation":
        return _activations(model, batches, form)
    if spec.by == "magnitude":
        squared = gather_parts(model, lambda weight: weight.detach().double().square(), form)
        return tuple(part.sqrt() for part in squared)
    with _gradients(model, batches):
        summed = gather_parts(model, _first_order, form)
    return tuple(part.abs() for part in summed)


def _of_layers(model: PreTrainedModel, spec: CutSpec, batches: Sequence[Batch], form: Form) -> Tensor:
    kind: Score = spec.layer_score
    if kind == "first":
        return torch.arange(form.layers, 0, -1.0)
    if kind == "spaced":
        return torch.zeros(form.layers)  # chosen by number; see ``choose``
    if kind == "random":
        return torch.rand(form.layers, generator=torch.Generator().manual_seed(spec.seed + 1))
    if kind == "magnitude":
        return gather_layers(model, lambda weight: weight.detach().double().square(), form).sqrt()
    if kind == "influence":
        return _influence(model, batches, form)
    if kind == "loss":
        return _rise(model, batches, form)
    with _gradients(model, batches):
        return gather_layers(model, _first_order, form).abs()


# Of weights.


def gather_parts(
    model: PreTrainedModel, of_entries: Callable[[nn.Parameter], Tensor], form: Form
) -> tuple[Tensor, Tensor, Tensor]:
    """Add up a number per weight over all matrices: to groups of heads, feed-forward units and hidden dimensions.

    Args:
        model: a causal LM of a family known here.
        of_entries: returns a number for each entry of a matrix, of its shape.
        form: the model's sizes.

    Returns:
        ``[layers, groups]``, ``[layers, units]``, ``[width]``, in fp64.
    """
    family = family_of(model.config, "the model")
    groups = torch.zeros(form.layers, form.groups, dtype=torch.float64)
    ffn = torch.zeros(form.layers, form.ffn, dtype=torch.float64)
    width = torch.zeros(form.width, dtype=torch.float64)
    for name, weight in model.named_parameters():
        layer, axes = axes_of(family, name, "the model")
        if weight.dim() < 2:
            continue
        found = of_entries(weight).cpu()
        for dimension, axis in enumerate(axes):
            along = found.sum(dim=[other for other in range(found.dim()) if other != dimension])
            if axis == "width" or (axis == "embedding" and form.embedding == form.width):
                width += along
            elif layer is not None and axis == "ffn":
                ffn[layer] += along
            elif layer is not None and axis in _HEAD_AXES:
                groups[layer] += _by_group(along, axis, form)
    return groups, ffn, width


def _by_group(along: Tensor, axis: Axis, form: Form) -> Tensor:
    return torch.stack([along[form.entries(axis, [group])].sum() for group in range(form.groups)])


def gather_layers(model: PreTrainedModel, of_entries: Callable[[nn.Parameter], Tensor], form: Form) -> Tensor:
    """Add up a number per weight over the matrices of each layer, ``[layers]``, in fp64."""
    family, found = family_of(model.config, "the model"), torch.zeros(form.layers, dtype=torch.float64)
    for name, weight in model.named_parameters():
        layer, _ = axes_of(family, name, "the model")
        if layer is not None and weight.dim() > 1:
            found[layer] += of_entries(weight).sum().cpu()
    return found


def _first_order(weight: nn.Parameter) -> Tensor:
    """Return w dL/dw: what the loss would fall by, to first order, if the weight were 0."""
    assert weight.grad is not None, "the loss depends on every matrix"
    return weight.detach().double() * weight.grad.double()


@contextmanager
def _gradients(model: PreTrainedModel, batches: Sequence[Batch]) -> Iterator[None]:
    """Hold the gradient of the mean cross-entropy over all response tokens."""
    wanted = [one.requires_grad for one in model.parameters()]
    model.requires_grad_()
    try:
        targets = sum(batch.targets for batch in batches)
        for batch in batches:
            (_summed_loss(model, batch) / targets).backward()
        yield
    finally:
        for one, before in zip(model.parameters(), wanted, strict=True):
            one.grad = None
            one.requires_grad_(before)


def _summed_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    return functional.cross_entropy(
        logits.float().flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )


@torch.no_grad()
def mean_loss(model: PreTrainedModel, batches: Sequence[Batch]) -> float:
    """Return the mean cross-entropy over all response tokens, in nats."""
    summed = sum(_summed_loss(model, batch).double().item() for batch in batches)
    return summed / sum(batch.targets for batch in batches)


# On rows.


class _Sizes:
    """Adds up sizes of activations: the mean over a row's tokens, then the root of the sum of squares over rows.

    Args:
        count: numbers of a token.
    """

    def __init__(self, count: int) -> None:
        self._squares = torch.zeros(count, dtype=torch.float64)

    def add(self, values: Tensor, mask: Tensor) -> None:
        """Count values ``[b s n]``, all >= 0, where the mask ``[b s]`` is 1."""
        kept = values.double() * mask[..., None]
        self._squares += (kept.sum(1) / mask.sum(1, keepdim=True)).square().sum(0).cpu()

    @property
    def total(self) -> Tensor:
        """The sizes, ``[n]``."""
        return self._squares.sqrt()


@torch.no_grad()
def _activations(model: PreTrainedModel, batches: Sequence[Batch], form: Form) -> tuple[Tensor, Tensor, Tensor]:
    family = family_of(model.config, "the model")
    groups = [_Sizes(form.groups) for _ in range(form.layers)]
    units = [_Sizes(form.ffn) for _ in range(form.layers)]
    norms = dict[str, _Sizes]()
    mask: list[Tensor] = []

    def of_units(sizes: _Sizes) -> Any:
        def read(_: nn.Module, args: tuple[Any, ...]) -> None:
            sizes.add(args[0].abs().reshape(*mask[0].shape, -1), mask[0])

        return read

    def of_heads(sizes: _Sizes) -> Any:
        def read(_: nn.Module, args: tuple[Any, ...]) -> None:
            by_group = args[0].reshape(*mask[0].shape, form.groups, -1)
            sizes.add(by_group.double().norm(dim=-1), mask[0])

        return read

    def of_norm(sizes: _Sizes) -> Any:
        def read(_: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
            sizes.add(out.abs().reshape(*mask[0].shape, -1), mask[0])

        return read

    hooks = []
    for number in range(form.layers):
        layer = model.get_submodule(f"{family.layers}{number}")
        hooks.append(layer.get_submodule(family.units).register_forward_pre_hook(of_units(units[number])))
        hooks.append(layer.get_submodule(family.heads).register_forward_pre_hook(of_heads(groups[number])))
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and axes_of(family, f"{name}.weight", "the model")[1] == ("width",):
            norms[name] = _Sizes(form.width)
            hooks.append(module.register_forward_hook(of_norm(norms[name])))
    try:
        for batch in batches:
            mask[:] = [batch.attention_mask]
            trunk_of(model)(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    width = torch.stack([one.total for one in norms.values()]).sum(0)
    return torch.stack([one.total for one in groups]), torch.stack([one.total for one in units]), width


@torch.no_grad()
def _influence(model: PreTrainedModel, batches: Sequence[Batch], form: Form) -> Tensor:
    """Return 1 - mean cosine of what a layer reads and what it gives, over all tokens."""
    family, found = family_of(model.config, "the model"), torch.zeros(form.layers, dtype=torch.float64)
    mask: list[Tensor] = []

    def compare(number: int) -> Any:
        def read(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after = out[0] if isinstance(out, tuple) else out
            found[number] += apart(before[mask[0]], after[mask[0]]).sum().item()

        return read

    layers = [model.get_submodule(f"{family.layers}{number}") for number in range(form.layers)]
    hooks = [layer.register_forward_hook(compare(number), with_kwargs=True) for number, layer in enumerate(layers)]
    try:
        for batch in batches:
            mask[:] = [batch.attention_mask.bool()]
            trunk_of(model)(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return found / sum(batch.tokens for batch in batches)


def apart(one: Tensor, other: Tensor) -> Tensor:
    """Return 1 - cosine of vectors ``[.. d]``, as half the square of the distance of their directions: 0 if equal.

    >>> apart(torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[3.0, 4.0], [0.0, 2.0]])).tolist()
    [0.0, 1.0]
    """
    first, second = (functional.normalize(value.double(), dim=-1) for value in (one, other))
    return (first - second).square().sum(-1) / 2


def _rise(model: PreTrainedModel, batches: Sequence[Batch], form: Form) -> Tensor:
    """Return by how much the loss rises where a layer gives what it reads."""
    family, whole = family_of(model.config, "the model"), mean_loss(model, batches)

    def pass_on(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        before = args[0] if args else kwargs["hidden_states"]
        return (before, *out[1:]) if isinstance(out, tuple) else before

    found = []
    for number in range(form.layers):
        layer = model.get_submodule(f"{family.layers}{number}")
        hook = layer.register_forward_hook(pass_on, with_kwargs=True)
        try:
            found.append(mean_loss(model, batches) - whole)
        finally:
            hook.remove()
    return torch.tensor(found, dtype=torch.float64)


@torch.no_grad()
def similarities(model: PreTrainedModel, batches: Sequence[Batch], where: str = "the model") -> dict[Half, list[float]]:
    """Return, for each layer's attention and feed-forward half, the mean cosine of x and x + f(x), over all tokens.

    A half that adds nothing has 1 (LLM-Drop, He et al. 2024, arXiv:2406.15786).

    Args:
        model: a causal LM of a family known here, in eval mode.
        batches: rows.
        where: the model, for messages.
    """
    family, form = family_of(model.config, where), form_of(model.config, where)
    parallel = getattr(model.config, "use_parallel_residual", False)
    apart_by: dict[Half, list[float]] = {"attention": [0.0] * form.layers, "mlp": [0.0] * form.layers}
    seen: dict[str, Tensor] = {}

    def begin(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen["x"] = args[0] if args else kwargs["hidden_states"]

    def add(number: int, half: Half) -> Any:
        def read(_: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            given = (out[0] if isinstance(out, tuple) else out).reshape(seen["x"].shape)
            mask = seen["mask"]
            after = seen["x"] + given
            apart_by[half][number] += apart(seen["x"][mask], after[mask]).sum().item()
            if not parallel:
                seen["x"] = after

        return read

    hooks = []
    for number in range(form.layers):
        layer = model.get_submodule(f"{family.layers}{number}")
        hooks.append(layer.register_forward_pre_hook(begin, with_kwargs=True))
        hooks.append(layer.get_submodule(family.attends).register_forward_hook(add(number, "attention")))
        hooks.append(layer.get_submodule(family.mlp_output).register_forward_hook(add(number, "mlp")))
    try:
        for batch in batches:
            seen["mask"] = batch.attention_mask.bool()
            trunk_of(model)(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    tokens = sum(batch.tokens for batch in batches)
    return {half: [1 - total / tokens for total in found] for half, found in apart_by.items()}


# From scores to what stays.


def highest(scores: Tensor, count: int, always: Sequence[int] = ()) -> tuple[int, ...]:
    """Return the numbers of the highest scores in ascending order; of equal ones the earlier.

    >>> highest(torch.tensor([1.0, 3.0, 3.0, 2.0]), 2), highest(torch.tensor([1.0, 3.0, 2.0]), 2, always=[0])
    ((1, 2), (0, 1))
    """
    raised = scores.double().clone()
    raised[list(always)] = float("inf")
    order = torch.sort(raised, descending=True, stable=True).indices[:count]
    return tuple(sorted(order.tolist()))


def spaced(layers: int, count: int, always: Sequence[int] = ()) -> tuple[int, ...]:
    """Return layers evenly spread over a model: the layer below each ``layers / count``-th step.

    Args:
        layers: how many there are.
        count: how many stay.
        always: some that stay anyway.

    >>> spaced(12, 6), spaced(12, 4, always=[0, 11])
    ((0, 2, 4, 6, 8, 10), (0, 1, 6, 11))
    """
    rest = [layer for layer in range(layers) if layer not in always]
    wanted = count - len(set(always))
    return tuple(sorted({*always, *(rest[place * len(rest) // wanted] for place in range(wanted))}))
