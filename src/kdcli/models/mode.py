"""Switches a model's dropout off for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout off, and put it back."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
