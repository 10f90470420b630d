"""A step that trains several sizes of one network on the same weights.

Every step has a largest and a smallest size and draws the others (sandwich rule). The largest learns from the labels
and teaches the others in the same pass (MLFS, Kundu et al. 2024, arXiv:2404.01353).
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from kdcli.data.batching import Batch
from kdcli.losses.base import DistillLoss, Layers
from kdcli.losses.build import build_objective
from kdcli.losses.wrappers.combine import Sum
from kdcli.models.family_layout import axes_of, family_of, form_of
from kdcli.models.layers import capture_layers
from kdcli.models.load import LanguageModel
from kdcli.models.packing import Packing, Projection, find_valid
from kdcli.students.palette import Palette, Size, palette_of
from kdcli.students.supernet import SharedSlice
from kdcli.students.supernet_spec import SupernetSpec
from kdcli.training.fused_loss import FusedInputs, fused_sum
from kdcli.training.step import DistillStep


@dataclass(frozen=True)
class Seen:
    """The largest size at the valid tokens of a micro-batch, without gradient.

    Args:
        side: what its head reads, ``[n, d]``, and the head.
        hidden: what each of its layers gives, ``[n, d]``.
    """

    side: Projection
    hidden: Mapping[int, Tensor]


def objective_of_sizes(loss: DistillLoss, alpha: float) -> DistillLoss:
    """Return what a smaller size learns: ``(1 - alpha) CE + alpha L(largest, size)``.

    >>> objective_of_sizes(build_objective("fkl"), 0.75).summands[0][0]
    0.25
    """
    return Sum(terms=((1.0 - alpha, build_objective("ce")), (alpha, loss)))


def stage_of(step: int, total: int, shares: Sequence[float]) -> int:
    """Return the stage of a step.

    Args:
        step: from 0.
        total: steps of the run.
        shares: of each stage, sum 1.

    >>> [stage_of(step, 8, (0.25, 0.5, 0.25)) for step in range(8)]
    [0, 0, 1, 1, 1, 1, 2, 2]
    """
    ends = [round(end * total) for end in np.cumsum(shares)]
    return next((stage for stage, end in enumerate(ends[:-1]) if step < end), len(shares) - 1)


def draw_sizes(sizes: Sequence[Size], most: int, seed: int, step: int) -> list[Size]:
    """Return the sizes of a step: the last of all first, then the first, then others drawn from (seed, step).

    Args:
        sizes: in ascending order.
        most: how many at most.
        seed: of the run.
        step: from 0.

    >>> sizes = [Size(width, 1.0) for width in (0.25, 0.5, 0.75, 1.0)]
    >>> [one.width for one in draw_sizes(sizes, 2, 0, 0)], [one.width for one in draw_sizes(sizes, 4, 0, 0)]
    ([1.0, 0.25], [1.0, 0.25, 0.5, 0.75])
    """
    if len(sizes) < 2:
        return list(sizes)
    smallest, *between, largest = sizes
    count = min(most - 2, len(between))
    drawn = np.random.default_rng([seed, step]).choice(len(between), size=count, replace=False) if count else []
    return [largest, smallest, *(between[place] for place in sorted(drawn))]


class SupernetStep(DistillStep):
    """Trains the sizes of a supernet: the gradient of a step is ``1/K sum_j (n_1 / n_j)^gamma dL_j``.

    Args:
        student: the supernet; its config names the sizes.
        loss: what a smaller size learns from the largest.
        spec: how the sizes are trained.
        vocab: real ids.
        reduce: mean over tokens, or over sequences' means.
        autocast: dtype of the forward passes; None computes in fp32.
        chunk_tokens: tokens whose logits exist at once; None chooses by device.
        seed: of the sizes drawn and of the low-rank pairs.
    """

    def __init__(
        self,
        student: LanguageModel,
        loss: DistillLoss,
        spec: SupernetSpec,
        *,
        vocab: int,
        reduce: Literal["token", "sequence"] = "token",
        autocast: torch.dtype | None = None,
        chunk_tokens: int | None = None,
        seed: int = 0,
    ) -> None:
        mixed = objective_of_sizes(loss, spec.alpha)
        super().__init__(
            student, None, mixed, vocab=vocab, reduce=reduce, autocast=autocast, chunk_tokens=chunk_tokens, seed=seed
        )
        self._ce, self._spec, self._seed = build_objective("ce"), spec, seed
        config = student.model.config
        form, self._palette = form_of(config, student.path), palette_of(config, student.path)
        kept = {size: self._palette.kept(size, form) for size in self._palette.sizes}
        self._slices = {size: SharedSlice(student, one, f"{student.path} at {size}") for size, one in kept.items()}
        self._matrices = _matrices(student)
        self._stage, self._sizes = 0, [self._palette.sizes[-1]]
        if spec.update == "low-rank":
            student.model.requires_grad_(False)
            self.learned = self._pairs()
        self._trainable = {size: self._count(one) for size, one in self._slices.items()}

    @property
    def sizes(self) -> list[Size]:
        """Those of the step in hand: the largest, the smallest, the others."""
        return self._sizes

    def trainable(self, size: Size) -> int:
        """Return the numbers of a size that a stage trains."""
        return self._trainable[size]

    def scale(self, size: Size) -> float:
        """Return the factor of a size's gradient in the sum over sizes: ``(n_1 / n_j) ** gamma``."""
        return (self.trainable(self._palette.sizes[-1]) / self.trainable(size)) ** self._spec.gamma

    def begin(self, step: int, total: int) -> None:
        """Choose stage and sizes of a step.

        Args:
            step: from 0.
            total: steps of the run.
        """
        self._stage = stage_of(step, total, self._spec.used_stages)
        self._sizes = draw_sizes(sizes_of_stage(self._palette, self._stage), self._spec.sizes, self._seed, step)
        for one in self._slices.values():
            one.model.model.train(self.model.training)

    @torch.no_grad()
    def finish(self) -> None:
        """Add the low-rank pairs to the weights, which then are those of the trained supernet."""
        if self._spec.update == "low-rank":
            self._stage = len(self._spec.stages) - 1
            held = self.weights()
            for name, value in self.model.named_parameters():
                value.copy_(held[name])

    def weights(self) -> dict[str, Tensor]:
        """Return the whole network's weights, name -> weight: ``W + sum_s A_s B_s`` where pairs are trained."""
        held: dict[str, Tensor] = dict(self.model.named_parameters())
        for stage in range(self._stage + 1):
            if f"stage{stage}" in self.learned:
                for name, up, down in self._pairs_of(stage):
                    both = up @ down if stage == self._stage else (up @ down).detach()
                    held[name] = held[name] + both
        return held

    def forward(self, batch: Batch, denominator: int, progress: float = 0.0) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the micro-batch's share of the step's loss, and the sums of each size's parts.

        Args:
            batch: padded ids and shifted labels.
            denominator: what the whole step divides by: valid tokens, or sequences.
            progress: share of the run that is done.
        """
        packing = find_valid(batch.labels)
        shares = self._weights(packing, denominator)
        held, count = self.weights(), len(self._sizes)
        total, logged, largest = shares.new_zeros(()), defaultdict[str, Tensor](lambda: shares.new_zeros(())), None
        for place, size in enumerate(self._sizes):
            one = _OneSize(self, batch, packing, shares, progress, largest)
            value, parts = self._slices[size].run(held, one.learn)
            largest = largest or one.seen
            total = total + value * (self.scale(size) / count)
            role = ("largest", "smallest", "between")[min(place, 2)]
            part_of_role = max(count - 2, 1) if role == "between" else 1
            for name, part in parts.items():
                logged[f"{role}/{name}"] = logged[f"{role}/{name}"] + part / part_of_role
        return total, dict(logged)

    def inputs(self, packing: Packing, shares: Tensor, batch: Batch, largest: Seen | None) -> FusedInputs:
        """Return everything about a micro-batch but the size that learns; its precision is filled in by that."""
        loss = self._ce if largest is None else self.loss
        teacher = largest.side if largest is not None and loss.needs().teacher else None
        return FusedInputs(
            loss, packing.labels, shares, packing.sequence, teacher, self.vocab, self.autocast or torch.float32,
            self.workspace, packing.facts(batch.facts),
        )  # fmt: skip

    @property
    def beta(self) -> float:
        """Weight of the term on hidden states; 0 in a step of one size."""
        return self._spec.beta if len(self._sizes) > 1 else 0.0

    def _pairs(self) -> nn.ModuleDict:
        made = nn.ModuleDict()
        parameters = dict(self.model.named_parameters())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            for stage, share in enumerate(self._spec.used_stages):
                if share:
                    made[f"stage{stage}"] = _Pairs([parameters[name] for name in self._matrices], self._spec.rank)
        return made

    def _pairs_of(self, stage: int) -> list[tuple[str, Tensor, Tensor]]:
        pairs = self.learned[f"stage{stage}"]
        assert isinstance(pairs, _Pairs), "see _pairs"
        return list(zip(self._matrices, pairs.up, pairs.down, strict=True))

    def _count(self, one: SharedSlice) -> int:
        shapes = {name: value.shape for name, value in one.model.model.named_parameters()}
        if self._spec.update == "full":
            return sum(shape.numel() for shape in shapes.values())
        return sum(self._spec.rank * sum(shapes[name]) for name in shapes if name in set(_matrices(one.model)))


class _OneSize:
    """One size's part of a micro-batch; ``seen`` is what it shows the others."""

    def __init__(
        self, step: SupernetStep, batch: Batch, packing: Packing, shares: Tensor, progress: float, largest: Seen | None
    ) -> None:
        self._step, self._batch, self._packing, self._shares = step, batch, packing, shares
        self._progress, self._largest = progress, largest
        self.seen: Seen | None = None

    def learn(self, model: LanguageModel) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum of a size's losses, and the sums of its parts."""
        step, packing, device = self._step, self._packing, self._batch.input_ids.device
        precision = torch.autocast(device.type, step.autocast) if step.autocast else nullcontext()
        with precision:
            own, hidden = self._look(model)
        work = step.inputs(packing, self._shares, self._batch, self._largest)
        total, parts = fused_sum(own, replace(work, compute=step.autocast or own.hidden.dtype, progress=self._progress))
        if self._largest is None:
            head = replace(own.head, weight=own.head.weight.detach())
            self.seen = Seen(
                Projection(own.hidden.detach(), head), {layer: one.detach() for layer, one in hidden.items()}
            )
        elif step.beta:
            apart = step.beta * distance(hidden, self._largest.hidden)
            total, parts = total + (apart * self._shares.to(apart.dtype)).sum(), parts | {"hidden": apart.detach()}
        return total, {name: (part * self._shares).sum() for name, part in {**work.logged, **parts}.items()}

    def _look(self, model: LanguageModel) -> tuple[Projection, Mapping[int, Tensor]]:
        ids, mask = self._batch.input_ids, self._batch.attention_mask
        hidden: Mapping[int, Tensor] = {}
        if self._step.beta:
            layers = range(1, model.model.config.num_hidden_layers + 1)
            seen = capture_layers(model.model, ids, mask, Layers(hidden=frozenset(layers)))
            last, hidden = seen.last, {layer: self._packing.pack(one) for layer, one in seen.hidden.items()}
        else:
            last = model.hidden(ids, mask)
        return Projection(self._packing.pack(last), model.current_head()), hidden


def distance(hidden: Mapping[int, Tensor], largest: Mapping[int, Tensor]) -> Tensor:
    """Return each token's squared distance from the largest size's hidden states, ``[n]``, summed over layers.

    Layer ``l`` of ``m`` answers to layer ``ceil(l M / m)`` of the largest size's ``M``, on the hidden dimensions that
    both have, divided by the largest size's ``d``.

    Args:
        hidden: what each layer of a size gives, ``[n, d']``.
        largest: what each layer of the largest gives, ``[n, d]``, without gradient.

    >>> distance({1: torch.tensor([[1.0]])}, {1: torch.zeros(1, 2), 2: torch.tensor([[3.0, 9.0]])}).tolist()
    [2.0]
    """
    found = []
    for layer, own in hidden.items():
        there = largest[-(-layer * len(largest) // len(hidden))]
        apart = own.to(torch.promote_types(own.dtype, torch.float32)) - there[:, : own.shape[1]]
        found.append(apart.square().sum(dim=1) / there.shape[1])
    return torch.stack(found).sum(dim=0)


def sizes_of_stage(palette: Palette, stage: int) -> list[Size]:
    """Return the sizes that a stage trains, in ascending order: the whole one, all widths, or all."""
    whole = palette.sizes[-1]
    if stage == 0:
        return [whole]
    return [size for size in palette.sizes if stage == 2 or size.depth == whole.depth]


class _Pairs(nn.Module):
    """A low-rank pair for each of several matrices; their product is 0 before training."""

    def __init__(self, matrices: Sequence[Tensor], rank: int) -> None:
        super().__init__()
        self.up, self.down = nn.ParameterList(), nn.ParameterList()
        for one in matrices:
            rows, columns = one.shape
            up = torch.randn(rows, rank, dtype=torch.float32) / rank**0.5
            self.up.append(nn.Parameter(up.to(one.device, one.dtype)))
            self.down.append(nn.Parameter(one.new_zeros(rank, columns)))


def _matrices(model: LanguageModel) -> list[str]:
    """Return the names of the matrices inside the layers."""
    family = family_of(model.model.config, model.path)
    named = model.model.named_parameters()
    return [name for name, one in named if one.dim() == 2 and axes_of(family, name, model.path)[0] is not None]
