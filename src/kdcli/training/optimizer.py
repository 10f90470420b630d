"""AdamW, the learning-rate schedule, and weights that stay 0."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from kdcli.config.sections import TrainConfig
from kdcli.errors import InputError
from kdcli.training.placement import of_this_process


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only."""
    named = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in named if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in named if p.ndim < 2], "weight_decay": 0.0},
    ]
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in named)
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, betas=config.betas, fused=fused)


def warmup_steps(config: TrainConfig, total: int) -> int:
    """Return the warm-up in steps: a share below 1, else a number.

    Raises:
        InputError: the warm-up is longer than the run.

    >>> warmup_steps(TrainConfig(warmup=0.1), 200), warmup_steps(TrainConfig(warmup=30), 200)
    (20, 30)
    """
    steps = math.ceil(config.warmup * total) if config.warmup < 1 else int(config.warmup)
    if steps > total:
        raise InputError(
            "CFG-13", f"{steps} warm-up steps > {total} steps", where="train.warmup", fix="warm up for less"
        )
    return steps


def learning_rate(config: TrainConfig, step: int, total: int) -> float:
    """Return the learning rate of a step, a pure function of its number.

    Args:
        config: peak rate, schedule and warm-up.
        step: the optimizer step, from 0.
        total: steps of the whole run.

    >>> learning_rate(TrainConfig(lr=1.0, schedule="linear", warmup=0.0), 50, 100)
    0.5
    """
    warm = warmup_steps(config, total)
    if step < warm:
        return config.lr * (step + 1) / warm
    done = (step - warm) / max(total - warm, 1)
    shape = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}
    return config.lr * shape[config.schedule]


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group the same learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


class KeptZeros:
    """Keeps weights at 0 that are 0 now, whole or in shards.

    Their gradients become 0 before the gradients' norm is taken, so that AdamW's moments of them are 0 from the first
    step on, and decay and momentum move nothing; after the step the weights are set to 0 once more.

    Args:
        weights: the matrices whose zeros are kept; one without any is left alone.

    Attributes:
        any: whether this process holds one that is 0.

    >>> weight = nn.Parameter(torch.tensor([[0.0, 2.0]]))
    >>> kept, optimizer = KeptZeros([weight]), torch.optim.AdamW([weight], lr=0.5, weight_decay=0.0)
    >>> weight.sum().backward()
    >>> kept.in_gradients()
    >>> optimizer.step()
    >>> kept.in_weights()
    >>> weight.tolist()
    [[0.0, 1.5]]
    """

    @torch.no_grad()
    def __init__(self, weights: Iterable[nn.Parameter]) -> None:
        found = [(weight, of_this_process(weight) == 0) for weight in weights]
        self._zeros = [(weight, zero) for weight, zero in found if zero.any()]
        self.any = bool(self._zeros)

    @torch.no_grad()
    def as_restored(self) -> None:
        """Take the zeros of a checkpoint that was just loaded, where they are others.

        Zeros chosen on rows may differ by rounding between machines, and a run may go on where it did not begin.
        """
        held = [(weight, zero, of_this_process(weight)) for weight, zero in self._zeros]
        self._zeros = [(weight, now == 0 if now[zero].any() else zero) for weight, zero, now in held]

    @torch.no_grad()
    def in_gradients(self) -> None:
        """Set the gradients of these weights to 0."""
        for weight, zero in self._zeros:
            if weight.grad is not None:
                of_this_process(weight.grad).masked_fill_(zero, 0.0)

    @torch.no_grad()
    def in_weights(self) -> None:
        """Set these weights to 0."""
        for weight, zero in self._zeros:
            of_this_process(weight).masked_fill_(zero, 0.0)
