"""Splits a model into a trunk and a head, and proves that the two together are the model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from kdcli.data.images import ImageInputs, join_images
from kdcli.errors import InputError
from kdcli.models.internals import RUN_ERRORS, position_bounds
from kdcli.text import one_line

_DIVIDED_BY = ("logits_scaling", "logits_mup_width_multiplier")
_MULTIPLIED_BY = ("logit_scale", "lm_head_multiplier", "output_multiplier")
_CAPPED_BY = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
_MULTIPLIES_ALL_THE_SAME = ("hyperclovax",)
_PROBE_SHAPE = (3, 11)


@dataclass(frozen=True)
class Head:
    """The last step of a language model: ``z = softcap * tanh((h W' + b) * scale / softcap)``.

    Args:
        weight: ``[v d]``, the model's own parameter, tied with the embedding where the model ties it.
        bias: ``[v]`` or None.
        scale: factor on the logits.
        softcap: bound of the logits; None leaves them unbounded.

    >>> head = Head(torch.eye(3), None, scale=2.0)
    >>> head.logits(torch.tensor([[1.0, 2.0, 3.0]]), rows=2).tolist()
    [[2.0, 4.0]]
    """

    weight: Float[Tensor, "v d"]
    bias: Float[Tensor, " v"] | None = None
    scale: float = 1.0
    softcap: float | None = None

    @property
    def rows(self) -> int:
        """Vocabulary rows of the weight, padding rows included."""
        return self.weight.shape[0]

    def logits(self, hidden: Float[Tensor, "*n d"], rows: int) -> Float[Tensor, "*n r"]:
        """Return the logits of hidden states.

        Args:
            hidden: ``[.., d]``.
            rows: compute only the first so many vocabulary entries: the ids that have a token.

        Returns:
            ``[.., rows]`` in the dtype of ``hidden``.
        """
        weight = self.weight[:rows].to(hidden.dtype)
        bias = None if self.bias is None else self.bias[:rows].to(hidden.dtype)
        logits = nn.functional.linear(hidden, weight, bias)
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits

    def apply_scale_and_cap_(self, logits: Tensor) -> Tensor:
        """Turn ``h W' + b``, ``[.., v]``, into logits in place, and return it; keeps no graph."""
        if self.scale != 1.0:
            logits.mul_(self.scale)
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    def grad_through_(self, grad: Tensor, logits: Tensor) -> Tensor:
        """Turn the gradient over logits into the one over ``h W' + b``, in place, and return it.

        Args:
            grad: ``[.., v]``, changed.
            logits: ``[.., v]``, the final logits; left as they are.
        """
        if self.softcap is not None:
            grad.mul_((logits / self.softcap).square_().neg_().add_(1.0))
        if self.scale != 1.0:
            grad.mul_(self.scale)
        return grad


def trunk_of(model: PreTrainedModel) -> nn.Module:
    """Return the part of a model below its head.

    Raises:
        InputError: the model has no such part.
    """
    trunk = getattr(model, model.base_model_prefix, None) if model.base_model_prefix else None
    if not isinstance(trunk, nn.Module):
        raise _refuse(model, "it has no trunk apart from its head")
    return trunk


def trunk_output(
    trunk: nn.Module,
    input_ids: Int[Tensor, "b s"],
    attention_mask: Int[Tensor, "b s"],
    extra: Sequence[ImageInputs | None] = (),
) -> Float[Tensor, "b s d"]:
    """Return what the head reads, ``[b s d]``.

    Where the longest row would choose the positions of all, rows that are to have others are read apart, so that a row
    is read as if it were alone; 0 stands at the padding of such rows.

    Args:
        trunk: from :func:`trunk_of`.
        input_ids: token ids ``[b s]``, padded on the right.
        attention_mask: 1 for tokens, 0 for padding, ``[b s]``.
        extra: the images of each row; none for rows of text alone.
    """
    groups = rows_by_positions(trunk, attention_mask)
    if not groups:
        return _at_once(trunk, input_ids, attention_mask, extra)
    found, width = [], input_ids.shape[1]
    for rows, length in groups:
        ids, mask = input_ids[rows, :length], attention_mask[rows, :length]
        images = [extra[row] for row in rows.tolist()] if extra else ()
        found.append(nn.functional.pad(_at_once(trunk, ids, mask, images), (0, 0, 0, width - length)))
    order = torch.cat([rows for rows, _ in groups]).argsort()
    return torch.cat(found)[order]


def _at_once(
    trunk: nn.Module, input_ids: Tensor, attention_mask: Tensor, extra: Sequence[ImageInputs | None] = ()
) -> Tensor:
    given = image_arguments(trunk, extra, input_ids.shape[1])
    return trunk(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **given).last_hidden_state


def image_arguments(trunk: nn.Module, extra: Sequence[ImageInputs | None], width: int) -> dict[str, Tensor]:
    """Return what a trunk reads besides tokens, by argument: the joined images of some rows, in its own precision.

    Args:
        trunk: from :func:`trunk_of`.
        extra: the images of each row; none for rows of text alone.
        width: tokens that each row has in the batch.
    """
    if not any(extra):
        return {}
    own = next(trunk.parameters())
    return {
        name: value.to(own.device, own.dtype) if value.is_floating_point() else value.to(own.device)
        for name, value in join_images(extra, width).items()
    }


def rows_by_positions(trunk: nn.Module, attention_mask: Int[Tensor, "b s"]) -> list[tuple[Tensor, int]]:
    """Return the rows of a batch that share their positions, each group with its longest length; none if all do.

    Args:
        trunk: from :func:`trunk_of`.
        attention_mask: 1 for tokens, 0 for padding on the right, ``[b s]``.
    """
    bounds = position_bounds(trunk.config) if isinstance(trunk, PreTrainedModel) else ()
    if not bounds or attention_mask.shape[1] <= bounds[0]:
        return []
    lengths = attention_mask.sum(dim=1)
    kinds = torch.stack([lengths > bound for bound in bounds]).sum(dim=0)
    groups = [(kinds == kind).nonzero()[:, 0] for kind in range(len(bounds) + 1)]
    found = [(rows, int(lengths[rows].max())) for rows in groups if len(rows)]
    alike = len(found) == 1 and sum(attention_mask.shape[1] > bound for bound in bounds) == int(kinds[0])
    return [] if alike else found


def split_head(model: PreTrainedModel) -> Head:
    """Return a model's head with the scale and the soft-cap of its family.

    Raises:
        InputError: MOD-20 where the head is no dense matrix.
    """
    output: Any = model.get_output_embeddings()
    weight = getattr(output, "weight", None)
    if not isinstance(output, nn.Linear) or not isinstance(weight, Tensor):
        raise _refuse(model, f"its head is {type(output).__name__}, not one dense matrix")
    if weight.dim() != 2 or weight.dtype not in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        raise _refuse(model, f"its head is quantised ({type(output).__name__}, {weight.dtype})")
    config = model.config.get_text_config(decoder=True)
    return Head(weight, output.bias, _scale(config), _softcap(config))


def _scale(config: Any) -> float:
    scale = 1.0
    for name in _MULTIPLIED_BY:
        value = getattr(config, name, None)
        scale *= float(value) if isinstance(value, int | float) else 1.0
    for name in _DIVIDED_BY:
        value = getattr(config, name, None)
        if isinstance(value, int | float) and value:
            scale = scale * value if config.model_type in _MULTIPLIES_ALL_THE_SAME else scale / value
    return scale


def _softcap(config: Any) -> float | None:
    caps = [getattr(config, name, None) for name in _CAPPED_BY]
    return next((float(cap) for cap in caps if cap), None)


@torch.no_grad()
def verify_split(model: PreTrainedModel, head: Head) -> None:
    """Check on a random, partly padded batch that the head on the trunk gives the model's logits.

    Also checks that the model is causal: no logit may depend on a later token.

    Raises:
        InputError: MOD-20 with the largest difference, or MOD-17 for a model that looks ahead.
    """
    ids, mask = _probe(model, head)
    later = ids.clone()
    later[:, -1] = (ids[:, -1] + 1) % min(head.rows, 100)
    training = model.training
    model.eval()
    try:
        whole, changed = (model(input_ids=given, attention_mask=mask, use_cache=False).logits for given in (ids, later))
        ours = _apart(model, head, ids, mask)
    except RUN_ERRORS as error:
        what = f"{type(model).__name__} cannot be run: {one_line(str(error), 160)}"
        raise InputError("MOD-14", what, fix="check config.json against the weights") from error
    finally:
        model.train(training)
    valid = mask.bool()
    _compare(model, ours[valid] if ours.shape == whole.shape else None, whole[valid])
    before = valid.clone()
    before[:, -1] = False
    ahead = _largest(changed[before], whole[before])
    if ahead > _tolerance(whole[before]):
        raise InputError(
            "MOD-17",
            f"needs a causal LM; {type(model).__name__} looks ahead: a later token moves earlier logits by {ahead:.2g}",
            fix="give a decoder-only language model",
        )


def _apart(model: PreTrainedModel, head: Head, ids: Tensor, mask: Tensor) -> Tensor:
    trunk = trunk_of(model)
    try:
        return head.logits(_at_once(trunk, ids, mask), head.rows)
    except RUN_ERRORS as error:
        raise _refuse(model, f"its trunk cannot be called alone ({one_line(str(error), 160)})") from error


def _probe(model: PreTrainedModel, head: Head) -> tuple[Tensor, Tensor]:
    rows, length = _PROBE_SHAPE
    positions = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    length = min(length, positions) if isinstance(positions, int) and positions > 1 else length
    device = head.weight.device
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, min(head.rows, 100), (rows, length), generator=generator).to(device)
    mask = torch.ones_like(ids)
    mask[1, length // 2 :] = 0
    return ids, mask


def _compare(model: PreTrainedModel, ours: Tensor | None, whole: Tensor) -> None:
    if ours is None:
        raise _refuse(model, "its head alone gives logits of another shape")
    if not torch.isfinite(whole).all():
        raise InputError("MOD-09", f"{type(model).__name__} gives logits that are not finite", fix="check its weights")
    largest = _largest(ours, whole)
    if largest > _tolerance(whole):
        raise _refuse(model, f"head and trunk apart differ from the model by {largest:.2g}")


def _largest(ours: Tensor, whole: Tensor) -> float:
    return (ours.double() - whole.double()).abs().max().item()


def _tolerance(logits: Tensor) -> float:
    return 16 * torch.finfo(logits.dtype).eps * max(logits.abs().max().item(), 1e-3)


def _refuse(model: PreTrainedModel, why: str) -> InputError:
    family = f"{type(model).__name__} ({model.config.model_type})"
    return InputError(
        "MOD-20",
        f"{family} cannot be split into trunk and head: {why}",
        fix="use a model of another family",
    )
