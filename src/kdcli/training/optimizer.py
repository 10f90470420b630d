"""AdamW and the learning-rate schedule."""

import math

import torch
from torch import nn

from kdcli.config.sections import TrainConfig
from kdcli.errors import InputError


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
