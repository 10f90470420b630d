"""A supernet: one network whose slices are the smaller sizes. A slice has no weights of its own."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from kdcli.data.tokenize import TokenDataset
from kdcli.models.family_layout import form_of
from kdcli.models.head import split_head
from kdcli.models.load import LanguageModel, assemble
from kdcli.students.cut import PALETTE, Kept, slice_model, slice_parts
from kdcli.students.made import open_teacher
from kdcli.students.palette import Palette
from kdcli.students.scores import Scores, highest, score, spaced
from kdcli.students.supernet_spec import SupernetSpec, parse_supernet

_Found = TypeVar("_Found")


def make_supernet(text: str, teacher_folder: str, *, rows: TokenDataset | None, device: torch.device) -> LanguageModel:
    """Put a teacher's heads, units and hidden dimensions in the order of their scores; its logits stay the same.

    The config of the result names the sizes.

    Args:
        text: ``supernet:`` spec.
        teacher_folder: folder or hub id of the teacher.
        rows: what scores are taken on, if one needs rows.
        device: where scores are computed, and the supernet is put.

    Raises:
        UsageError: the spec cannot be used, rows are missing, or the teacher has no such sizes.
        InputError: the teacher cannot be used, or its family cannot be cut.
    """
    spec = parse_supernet(text)
    opened = open_teacher(spec.scoring, teacher_folder, rows, device, text)
    counts = spec.check_on(opened.model.config, teacher_folder)
    scores = score(opened.model, spec.scoring, opened.batches, teacher_folder)
    made = slice_model(opened.model, ordered(opened.model, scores), teacher_folder)
    setattr(made.config, PALETTE, Palette(spec.widths, _layers(spec, counts, scores)).as_setting())
    return opened.assembled(made, str(spec), device)


def ordered(model: PreTrainedModel, scores: Scores) -> Kept:
    """Return everything of a model, the highest scores first.

    Args:
        model: a causal LM of a family known here.
        scores: of its heads, units and hidden dimensions.
    """
    layers = range(form_of(model.config, "the model").layers)
    return Kept(
        tuple(layers), tuple(_descending(scores.groups[layer]) for layer in layers),
        tuple(_descending(scores.ffn[layer]) for layer in layers), _descending(scores.width),
    )  # fmt: skip


def _descending(scores: Tensor) -> tuple[int, ...]:
    return tuple(torch.sort(scores.double(), descending=True, stable=True).indices.tolist())


def _layers(spec: SupernetSpec, counts: tuple[int, ...], scores: Scores) -> tuple[tuple[int, ...], ...]:
    """Return the layers of every depth."""
    whole = counts[-1]
    if spec.layers_by == "spaced" or len(counts) == 1:
        return tuple(spaced(whole, count) for count in counts)
    return tuple(highest(scores.layers, count) for count in counts)


class SharedSlice:
    """A slice of a model that has no weights of its own: it runs on the model's, and gradients go back to these.

    Args:
        whole: the model; it stays as it is.
        kept: what stays of it.
        name: of the slice, for messages.
    """

    def __init__(self, whole: LanguageModel, kept: Kept, name: str = "a slice") -> None:
        form = form_of(whole.model.config, whole.path)
        names = [name for name, _ in whole.model.named_parameters()]
        self._parts = None
        if kept != Kept.everything(form):
            self._parts = slice_parts(names, whole.model.config, kept, whole.path)
        made = slice_model(whole.model, kept, whole.path)
        device = next(whole.model.parameters()).device
        found = assemble(made, whole.tokenizer, name, whole.digest, device=device, role="student", ends=whole.ends)
        _let_go(made)
        self.model = replace(found, head=split_head(made))
        self._running = _Running(made)

    def weights(self, whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights of the slice; gradients of these go back to the entries that they are.

        Args:
            whole: name -> weight of the model.
        """
        if self._parts is None:
            return dict(whole)
        return {part.name: part.of(whole[part.source]).contiguous() for part in self._parts}

    def run(self, whole: Mapping[str, Tensor], compute: Callable[[LanguageModel], _Found]) -> _Found:
        """Compute something with the slice while it has the weights of a model.

        Args:
            whole: name -> weight of the model.
            compute: is given the slice, and must use it up before it returns.
        """
        held = {f"model.{name}": value for name, value in self.weights(whole).items()}
        found: Any = functional_call(self._running, held, (lambda: compute(self.model),))
        return found


class _Running(nn.Module):
    """Calls something while its model's parameters are exchanged."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, compute: Callable[[], Any]) -> Any:
        """Return what the call returns."""
        return compute()


def _let_go(model: PreTrainedModel) -> None:
    """Leave a model its parameters' names and shapes, and free their memory; tied ones stay tied."""
    empty: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, value in list(module.named_parameters(recurse=False)):
            shape = empty.setdefault(id(value), nn.Parameter(torch.empty_like(value, device="meta")))
            setattr(module, name, shape)
